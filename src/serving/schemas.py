"""What the reward server is asked and what it answers, as JSON; and how it says no."""

import binascii
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from src.errors import RecordError

Schema = TypeVar("Schema", bound=BaseModel)


class RewardRequest(BaseModel):
    """Two answers to one question, as published."""

    model: str = Field("", description="Any name; it comes back in the response.")
    problem_description: str = Field(description="The question that both completions answer; may be empty.")
    image_data: str | None = Field(None, description="The image it is about: encoded bytes in base64, or a data URL.")
    completion1: str
    completion2: str


class CompletionScore(BaseModel):
    completion_id: str
    score: float


class RewardResponse(BaseModel):
    model: str
    scores: list[CompletionScore]


class ScoreRequest(BaseModel):
    """Any number of texts about the same images."""

    images: list[str] = Field([], description="Encoded bytes of each image in base64, or data URLs.")
    question: str = Field("", description="What the texts answer; empty for captions.")
    texts: list[str] = Field(min_length=1)


class ScoreResponse(BaseModel):
    scores: list[float] = Field(description="One for each text, in their order; all above 0, higher is better.")


class Refusal(BaseModel):
    """Why there is no score."""

    kind: str = Field(description="A short stable name, such as unreadable_image, empty_text or overloaded.")
    message: str = Field(description="A sentence that names the item at fault.")


class RefusedError(Exception):
    """A request that is not answered with scores.

    Attributes:
        status: of HTTP.
        kind, message: as in :class:`Refusal`.
        retry_after: seconds after which it is worth another try; None: it is not, as it is.
    """

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.kind, self.message, self.retry_after = status, kind, message, retry_after

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        # Whoever sends too slowly is not waited for any longer; all others may finish sending and read the answer.
        return headers | ({"Connection": "close"} if self.status == 408 else {})


def parse(schema: type[Schema], body: bytes) -> Schema:
    """The body as an instance of ``schema``.

    Raises:
        RefusedError: 422, with the first thing that is wrong and where.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise RefusedError(422, "bad_request", f"{where}: {first['msg']}") from None


def image_bytes(text: str) -> bytes:
    """The encoded image of a base64 text or data URL.

    Raises:
        RecordError: ``unsafe_path`` for a URL or a path, ``unreadable_image`` for other text that is not base64.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RecordError("unreadable_image", "a data URL must be of the form data:image/png;base64,...")
    try:
        return binascii.a2b_base64(text.strip().encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        if "://" in text[:16] or text[:1] in "./~":
            what = "URLs and paths are not taken: send the image itself, in base64"
            raise RecordError("unsafe_path", what) from None
        raise RecordError("unreadable_image", f"not base64: {error}") from None


def body_of(schema: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a route that reads its own body."""
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
