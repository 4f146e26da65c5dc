"""What the published evaluation and rewards return: for comparison with old numbers only.

They count an answer as right if it is a part of the reference, pair boxes by position and leave misses out of the
count; ``docs/metrics.md`` tells what is used instead, and ``tests/fixtures/metrics`` where the two differ.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence

from src.rewards.boxes import Box, box_iou, size_class

_D = r"(\d+(?:\.\d+)?)"
_ROUND = re.compile(rf"\({_D},{_D}\),\({_D},{_D}\)")
_SQUARE = re.compile(rf"\[{_D},\s*{_D},\s*{_D},\s*{_D}\]")
_WHOLE = re.compile(r"\[(\d+), ?(\d+), ?(\d+), ?(\d+)\]")
_VHM = re.compile(r"\[\[(\d+)(?:,\s*|\s+)(\d+)(?:,\s*|\s+)(\d+)(?:,\s*|\s+)(\d+)\]\]")
_ANY = re.compile(r"\[([^,]*),([^,]*),([^,]*),([^\]]*)\]")
_ANGLED = re.compile(rf"\{{<{_D}><{_D}><{_D}><{_D}>\|<\d+>\}}")
_FENCED = re.compile(r"```json\n(.*?)\n?```", re.S)
_BBOX = re.compile(r"<bbox>\[([\d.,]+)\]</bbox>")
_BOX_TAG = re.compile(r"<box>(.*?)</box>", re.S)


def published_cut(text: str | None) -> str:
    """The part of an answer that the published evaluation looks at; None is read as the word None."""
    text = str(text)
    if "<think>" in text:
        text = text.split("</think>")[1] if "</think>" in text else text
    if "<answer>" in text:
        text = text.split("<answer>")[1].split("</answer>")[0]
    return text


def published_judge(kind: str, text: str | None, reference: str) -> tuple[bool, str]:
    """(whether the cleaned answer is a part of the reference, the cleaned answer); ``kind`` as for ``judge``."""
    said = published_cut(text).replace(" ", "").split(".")[0]
    wanted = reference.replace(" ", "")
    if kind == "choice":
        wanted = wanted.replace(".", "")
    else:
        said = said.split(",")[0]
    return said.lower() in wanted.lower(), said.lower()


def _floats(matches: Iterable[tuple[str, ...]]) -> list[list[float]]:
    return [[float(number.strip(" []\n")) for number in match] for match in matches]


def _qwen2_5(text: str) -> list[list[float]]:
    if match := _FENCED.search(text):
        try:
            return [item["bbox_2d"] for item in json.loads(match[1])]
        except json.JSONDecodeError:
            pass
    return _floats(_ROUND.findall(text)) or _floats(_SQUARE.findall(text))


def _internvl3(text: str) -> list[list[float]]:
    inside = _BOX_TAG.search(text)
    return _floats(_SQUARE.findall(inside[1])[:1]) if inside else _floats(_ANY.findall(text))


def _grpo(text: str) -> list[list[float]]:
    tagged = "<|box_start|>" in text and "<|box_end|>" in text
    return _floats((_ROUND if tagged else _SQUARE).findall(text))


_EXTRACTORS: dict[str, Callable[[str], list[list[float]]]] = {
    "ground_truth": lambda text: _floats(_WHOLE.findall(text)),
    "qwen2_vl": lambda text: _floats(_ROUND.findall(text)),
    "qwen2_vl_reasoning": lambda text: _floats(_ROUND.findall(text)) or _floats(_WHOLE.findall(text)),
    "qwen2_5_vl": _qwen2_5,
    "internvl2": lambda text: _floats(_ANY.findall(text)),
    "internvl3": _internvl3,
    "geochat": lambda text: _floats(_ANGLED.findall(text)),
    "skysensegpt": lambda text: _floats(_ANGLED.findall(text)),
    "vhm": lambda text: _floats(_VHM.findall(text)),
    "lhrs_nova": lambda text: _floats(tuple(match.split(",")) for match in _BBOX.findall(text)),
    "grpo_reference": _grpo,
}
_EMPTY_LIST = {"ground_truth", "vhm", "grpo_reference"}  # what these return where there is no box; the others none


def published_boxes(text: str | None, family: str) -> list[list[float]] | None:
    """The boxes of an answer in its own units, of any length; None or an empty list where there is none.

    Raises:
        ValueError, TypeError: as the published extractors do on text that they cannot read.
        KeyError: an unknown family.
    """
    found = _EXTRACTORS[family](published_cut(text))
    return found if found or family in _EMPTY_LIST else None


def published_grounding(records: Iterable[tuple[Sequence[Box], Sequence[Box] | None]]) -> dict[str, object]:
    """Precision at 0.5 by position, over the boxes that were paired, and by size; of (true, predicted) in pixels.

    Raises:
        ValueError: nothing was paired at all.
    """
    hits: list[tuple[bool, str]] = []
    for true, predicted in records:
        largest = "S"
        pairs = zip(true, predicted, strict=False) if predicted is not None else ((box, None) for box in true)
        for box, said in pairs:
            largest = max(largest, size_class(box), key="SML".index)  # a class never goes down within a record
            hits.append((said is not None and box_iou(box, said) >= 0.5, largest))
    if not hits:
        raise ValueError("no pair of boxes at all")
    by_size = {name: [hit for hit, size in hits if size == name] for name in "SML"}
    return {
        "precision": sum(hit for hit, _ in hits) / len(hits),
        "size": {
            name: {"count": len(each), "precision": sum(each) / len(each) if each else None}
            for name, each in by_size.items()
        },
    }


def published_format(response: str) -> bool:
    """Whether a response is a think part and an answer part, and nothing else."""
    return re.fullmatch(r"<think>.*</think>\s*<answer>.*</answer>", response, re.S) is not None


def published_em(response: str, reference: str) -> float:
    """1 where answer and reference are equal without blanks and full stops, else 0."""
    said, wanted = (text.lower().replace(" ", "").replace(".", "") for text in (_tagged(response), reference))
    return float(said == wanted)


def published_iou(response: str, reference: str) -> float:
    """A staircase of the IoU of boxes paired by position, above 1 for several good ones; 0 for round brackets."""
    true = _grpo(reference)
    said = _tagged(response, re.S)
    if _ROUND.search(said) or not true:
        return 0.0
    answered = _floats(_SQUARE.findall(said))
    if len(answered) != len(true):
        return 0.0
    total = 0.0
    for one, other in zip(answered, true, strict=True):
        if (one[0] < 1) != (other[0] < 1) and 1 not in (one[0], other[0]):
            one, other = ([1000 * v for v in box] if box[0] < 1 else box for box in (one, other))  # noqa: PLW2901
        iou = box_iou(tuple(one), tuple(other))  # type: ignore[arg-type]  # four numbers by the pattern
        if iou > 0.5:
            total += 0.5 / len(true) + (0.5 if iou > 0.8 else 0.2 if iou > 0.7 else 0.1 if iou > 0.6 else 0.0)
    return total


def published_open_ended(answer_score: float | None, reference_score: float | None) -> float:
    """1 - exp(-0.2 d) of the difference d of the scores if the answer has the higher one, else 0; 0 without scores."""
    if answer_score is None or reference_score is None:
        return 0.0
    return max(0.0, 1.0 - math.exp(-0.2 * max(0.0, answer_score - reference_score)))


def _tagged(response: str, flags: int = 0) -> str:
    match = re.search(r"<answer>(.*?)</answer>", response, flags)
    return match[1] if match else response
