"""What an answer says: its last word, its plain form, its boxes; one reading for training, evaluation and rewards."""

import re
import string
from collections.abc import Sequence

Box = tuple[float, float, float, float]

_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_MARKS = str.maketrans(dict.fromkeys(string.punctuation, " "))
_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_INNER_MARK = re.compile(r"(?<=\d)[.,](?=\d)|(?<!\w)-(?=\d)")
# (x1,y1),(x2,y2) as Qwen2-VL writes it, with its box tokens or without, or [x1, y1, x2, y2] as in JSON.
_BOX = re.compile(
    rf"\({_NUMBER},{_NUMBER}\)\s*,?\s*\({_NUMBER},{_NUMBER}\)|\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
)


def final_answer(text: str) -> str:
    """What an answer comes to: without its reasoning, and out of its ``<answer>`` tags where it has them.

    >>> final_answer("<think>two piers</think>\\n<answer>\\nA harbour.</answer>")
    'A harbour.'
    """
    text = text.rpartition("</think>")[2]
    if "<answer>" in text:
        text = text.partition("<answer>")[2]
    return text.partition("</answer>")[0].strip()


def normalise_answer(text: str) -> str:
    """The plain form in which two answers are compared: equal or not, never as a part of each other.

    Lower case, number words up to twenty as digits, no articles, no punctuation but inside of numbers and before
    negative ones, single spaces.

    >>> normalise_answer("The  Two-storey house, at 0.75 m.")
    '2 storey house at 0.75 m'
    """
    lowered = text.lower()
    # Marks that belong to a number are put out of reach of the next line, by characters that no text has.
    kept = _INNER_MARK.sub(lambda mark: {".": "\ue000", ",": "", "-": "\ue001"}[mark[0]], lowered)
    words = kept.translate(_MARKS).replace("\ue000", ".").replace("\ue001", "-").split()
    telling = [word for word in words if word not in _ARTICLES] or words  # "A" may be a choice of several
    return " ".join(_WORDS.get(word, word) for word in telling)


def same_answer(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer comes to one of the references; an empty one never does."""
    said = normalise_answer(final_answer(answer))
    return bool(said) and said in {normalise_answer(reference) for reference in references}


def parse_boxes(text: str) -> list[Box]:
    """The boxes (x1, y1, x2, y2) that a text gives, in order, corners sorted; in whatever units it has.

    >>> parse_boxes("<|box_start|>(10,20),(300,400)<|box_end|> and [5, 5, 1.5, 9]")
    [(10.0, 20.0, 300.0, 400.0), (1.5, 5.0, 5.0, 9.0)]
    """
    boxes = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(value) for value in match.groups() if value is not None)
        boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return boxes


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union, in 0..1; 0 where both are empty."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def box_hits(predicted: Sequence[Box], true: Sequence[Box], threshold: float = 0.5) -> int:
    """How many true boxes can be given a predicted one each, all with an IoU of at least ``threshold``.

    The greatest possible number, whatever the order of either: no box is used twice.
    """
    near = [[k for k, box in enumerate(predicted) if box_iou(box, wanted) >= threshold] for wanted in true]
    taken: dict[int, int] = {}  # predicted -> true

    def place(wanted: int, tried: set[int]) -> bool:
        for k in near[wanted]:
            if k not in tried:
                tried.add(k)
                if k not in taken or place(taken[k], tried):
                    taken[k] = wanted
                    return True
        return False

    return sum(place(wanted, set()) for wanted in range(len(true)))
