"""What a model refuses: the prompts at fault are found in a batch, and told by one kind whatever runs the model."""

import re
from collections.abc import Callable, Sequence

from src.errors import RecordError
from src.evaluation.backends.base import Answer, Prompt

# How transformers, vLLM, SGLang, LMDeploy and OpenAI say that a prompt, or a prompt and its text, is too long.
_TOO_LONG = re.compile(
    r"context[ _]length|max(imum)? (model|prompt|input|sequence)[ _]len|max_model_len|session_len|too long"
    r"|exceeds? .*\b(tokens|length)\b|longer than .*\b(tokens|length)\b",
    re.IGNORECASE,
)


def refusal(message: str) -> RecordError:
    """What a model or server says against a prompt, of one kind whoever says it: ``text_too_long`` or ``refused``."""
    return RecordError("text_too_long" if _TOO_LONG.search(message) else "refused", message)


def in_halves(
    prompts: Sequence[Prompt],
    call: Callable[[Sequence[Prompt]], list[Answer]],
    refused: type[Exception] | tuple[type[Exception], ...],
) -> list[Answer]:
    """Answer prompts together; if that is refused, each half, and so on, until the prompts at fault are alone."""
    try:
        return call(prompts)
    except refused as error:
        if isinstance(error, RecordError):
            failure = RecordError(error.kind, str(error))
        else:
            failure = refusal(f"the model refuses it: {error}")
    # Out of the handler, whose traceback holds the memory of what failed.
    if len(prompts) == 1:
        return [failure]
    middle = len(prompts) // 2
    return in_halves(prompts[:middle], call, refused) + in_halves(prompts[middle:], call, refused)
