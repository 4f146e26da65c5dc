"""A back end that is loaded when it is first asked: where all answers are known, no model is needed."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from src.evaluation.backends.base import Answer, Backend, Generation, Prompt, Request, Sampling


class LaterBackend(Backend):
    """See the module.

    Args:
        load: makes the back end.
    """

    def __init__(self, load: Callable[[], Backend]):
        self._load = load
        self._loaded: Backend | None = None

    @property
    def loaded(self) -> Backend:
        """The back end itself."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def free(self) -> None:
        """Let go of it; the next request loads it again."""
        self._loaded = None

    def stream(self, requests: Iterable[Request], sampling: Sampling | None = None) -> Iterator[Generation]:
        return self.loaded.stream(requests, sampling)

    def answer(self, prompts: Sequence[Prompt], done: Callable[[int], object]) -> list[Answer]:
        return self.loaded.answer(prompts, done)

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.loaded, name)
