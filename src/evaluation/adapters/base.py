"""What stands between a task and a model: how a family of models is asked, and where in the image its boxes lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from src.chat import IMAGE
from src.evaluation.backends import Backend, Request, Sampling
from src.evaluation.tasks import Sample, Task
from src.rewards.boxes import BOX_FORMATS, Box, parse_boxes
from src.rewards.published import published_boxes

Size = tuple[int, int]
Frame = Literal["image", "square", "patches"]
_PATCH = 28  # pixels of a side that make one token of Qwen's models
_LIMITS = (56 * 56, 12845056)  # Qwen2.5-VL's own, where the back end cannot be asked


@dataclass(frozen=True)
class Family:
    """What a family of models was taught.

    Attributes:
        prompts: by prompt of a task (``Task.prompt``) the sentence around ``{question}``; none: the question alone.
        boxes: how boxes are written, a key of :data:`src.rewards.boxes.BOX_FORMATS`.
        bound: coordinates are in 0..bound; None: the format's own.
        frame: what coordinates are of: the ``image``, the ``square`` that it is padded to in the middle, or, in pixels,
            the image resized to whole ``patches``.
        thinks: answers come with reasoning and answer tags, asked for by the system prompt of R1.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    boxes: str = "internvl2"
    bound: float | None = None
    frame: Frame = "image"
    thinks: bool = False


@dataclass(frozen=True)
class Adapter:
    """A model behind its back end, as the evaluation sees it.

    Attributes:
        backend: answers requests.
        family: of the model.
        system: system prompt, in the place of the chat template's own.
    """

    backend: Backend
    family: Family
    system: str | None = None

    def turns(self, task: Task, sample: Sample) -> list[dict[str, str]]:
        """The conversation that asks for a sample; no blank is added around a question."""
        said = self.family.prompts.get(task.prompt, "{question}").replace("{question}", sample.asked(task.instruction))
        turns = [{"role": "system", "content": self.system}] if self.system else []
        return [*turns, {"role": "user", "content": said}]

    def request(self, task: Task, sample: Sample, sampling: Sampling, blind: bool = False) -> Request:
        """A request to the back end. With ``blind`` it shows no image: what the question alone gives away."""
        turns = self.turns(task, sample)
        if blind:
            turns[-1]["content"] = turns[-1]["content"].replace(f"{IMAGE}\n", "").replace(IMAGE, "").strip()
        return Request(turns, () if blind else sample.images, sampling, sample.id)

    def boxes(self, text: str | None, size: Size) -> list[Box]:
        """Boxes of an answer in pixels of an image of ``size`` (width, height), clipped to it."""
        family = self.family
        frame, (left, top) = self._frame(size)
        across, down = (size[0] / frame[0], size[1] / frame[1]) if family.frame == "patches" else (1.0, 1.0)
        found = []
        for x1, y1, x2, y2 in parse_boxes(text, family.boxes, frame, family.bound):
            x1, x2 = (min(max((x - left) * across, 0.0), size[0]) for x in (x1, x2))  # noqa: PLW2901
            y1, y2 = (min(max((y - top) * down, 0.0), size[1]) for y in (y1, y2))  # noqa: PLW2901
            if x1 < x2 and y1 < y2:
                found.append((x1, y1, x2, y2))
        return found

    def published_boxes(self, text: str | None, size: Size) -> list[Box] | None:
        """What the published extractor makes of it, in its pixels; where that fails, None, as if there were none."""
        try:
            found = published_boxes(text, self.family.boxes)
        except (ValueError, TypeError, KeyError, IndexError):
            return None
        if found is None:
            return None
        bound = self.family.bound or BOX_FORMATS[self.family.boxes].bound
        across, down = (size[0] / bound, size[1] / bound) if bound else (1.0, 1.0)
        return [(x1 * across, y1 * down, x2 * across, y2 * down)
                for x1, y1, x2, y2 in (box for box in found if len(box) == 4)]  # fmt: skip

    def _frame(self, size: Size) -> tuple[Size, tuple[int, int]]:
        """(width, height) of what coordinates are of, and where in it the image begins."""
        width, height = size
        if self.family.frame == "square":
            side = max(size)
            return (side, side), ((side - width) // 2, (side - height) // 2)
        if self.family.frame == "patches":
            processor: Any = getattr(getattr(self.backend, "processor", None), "image_processor", None)
            limits = getattr(processor, "size", None)
            least, most = (getattr(limits, key, None) for key in ("shortest_edge", "longest_edge"))
            seen_height, seen_width = smart_resize(height, width, _PATCH, least or _LIMITS[0], most or _LIMITS[1])
            return (seen_width, seen_height), (0, 0)
        return size, (0, 0)
