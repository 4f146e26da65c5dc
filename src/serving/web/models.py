"""The models behind the page: one thread each, so that any number of visitors wait their turn in order."""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from src.curation.scorer import Scorer
from src.errors import JobError, RecordError
from src.evaluation.backends import Backend, Generation, Request, Sampling, get_backend
from src.serving.web.pictures import UPLOAD_LIMITS

logger = logging.getLogger(__name__)
TICK = 0.08  # seconds between two looks at a text that grows
Made = TypeVar("Made")
MOST_TEXTS = 16  # that are generated side by side


@dataclass
class Growth:
    """Texts that are being made.

    Attributes:
        waiting: others are served before.
        done: nothing more comes.
        stopped: they were ended before their end.
        error: a sentence, instead of texts.
    """

    texts: list[str] = field(default_factory=list)
    waiting: bool = True
    done: bool = False
    stopped: bool = False
    error: str = ""


class Models:
    """A vision-language model and a score model.

    Args:
        vlm: what answers.
        scorer: what scores.
    """

    def __init__(self, vlm: Backend, scorer: Scorer):
        self.vlm, self.scorer = vlm, scorer
        self._speaking = ThreadPoolExecutor(1, thread_name_prefix="vlm")
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scorer")

    @classmethod
    def load(cls, vlm: str | Path, scorer: str | Path, device: str = "auto") -> "Models":
        """Load both.

        Raises:
            JobError: no such model, or it cannot be used.
        """
        options: dict[str, Any] = {"batch_size": MOST_TEXTS, "limits": UPLOAD_LIMITS, "progress": False}
        backend = get_backend("transformers", vlm, device=device, **options)
        return cls(backend, Scorer.from_pretrained(scorer, device=device, limits=UPLOAD_LIMITS))

    def answer(self, request: Request, sampling: Sampling, stop: threading.Event) -> Iterator[Growth]:
        """Yield the texts as they grow, the last time when they are done; leaving off, or ``stop``, ends the work."""
        growth = Growth()

        def seen(texts: list[str]) -> bool:
            growth.texts = texts
            growth.stopped = stop.is_set()
            return growth.stopped

        def work() -> Generation:
            growth.waiting = False
            growth.stopped = stop.is_set()
            return Generation() if growth.stopped else self.vlm.watch(request, sampling, seen)

        job = self._speaking.submit(work)
        try:
            while not wait([job], TICK).done and not (stop.is_set() and job.cancel()):
                yield growth
        finally:
            stop.set()
        growth.waiting, growth.done = False, True
        if job.cancelled():
            growth.stopped = True
        else:
            made = _outcome(job, "the model")
            if isinstance(made, str) or made.error:
                growth.error = made if isinstance(made, str) else f"No answer: {made.error}"
            else:
                growth.texts = made.texts or growth.texts
        yield growth

    def score(self, images: Sequence[Any], question: str, texts: Sequence[str]) -> list[float | str]:
        """The score of each text as an answer to a question about images, or the sentence why it has none."""
        pairs = [{"images": list(images), "question": question, "text": text} for text in texts]

        def work() -> list[float | str]:
            [scored] = self.scorer.stream([pairs])
            return [f"No score: {each.error}" if each.score is None else each.score for each in scored]

        made = _outcome(self._scoring.submit(work), "the score model")
        return [made] * len(texts) if isinstance(made, str) else made


def _outcome(job: "Future[Made]", who: str) -> Made | str:
    """What a job gave, or a sentence for the visitor; what was not foreseen goes to the log as well."""
    try:
        return job.result()
    except (RecordError, JobError) as error:
        return str(error)
    except Exception as error:
        logger.exception("%s failed", who)
        return f"{who.capitalize()} failed ({type(error).__name__}); the log of the server says more."
