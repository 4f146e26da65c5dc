"""What back ends share whose engine gets a whole window at once."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

from src.evaluation.backends.base import Answer, Backend, Prompt
from src.evaluation.backends.refusals import in_halves


class EngineBackend(Backend):
    """A back end whose engine gets a whole window and batches it itself."""

    def answer(self, prompts: Sequence[Prompt], done: Callable[[int], object]) -> list[Answer]:
        """See the base class."""
        answers = in_halves(prompts, self.infer, ValueError) if prompts else []
        done(len(prompts))
        return answers

    @abstractmethod
    def infer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Texts of some prompts. Raises ValueError if one of them is refused."""
