"""The one place where a pair or a question becomes chat text, for training, scoring, generation and the server alike.

Two templates, by name:

* ``answer``: user turn with image(s) and question, assistant turn with the text to be scored. This is what the score
  model is trained on; a caption is the answer to an empty question.
* ``published_readme``: the published README's form, image(s) and caption in the user turn and an open assistant turn.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from src.errors import JobError, RecordError
from src.model.checkpoint import locate

Template = Literal["answer", "published_readme"]
TEMPLATES: tuple[Template, ...] = ("answer", "published_readme")
ROLES = ("system", "user", "assistant")
IMAGE = "<image>"
# The published reasoning format: marks of the chat, and as ``meta_instruction`` the system prompt of R1.
THINKING = "config/qwen2_thinking_template.json"
# Tokens that stand for image features: written out in a text they would claim features that do not exist.
RESERVED = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")

Message = dict[str, Any]


def pair_messages(images: Sequence[Any], text: str, question: str = "", template: Template = "answer") -> list[Message]:
    """Return the chat messages in which ``text`` is scored as a caption of, or an answer about, ``images``.

    Args:
        images: any objects; they are carried through as the ``image`` of a content part, in order.
        text: caption or answer, not empty.
        question: may hold one ``<image>`` per image to say where it goes; without any, images come first.
        template: see the module.

    Raises:
        RecordError: ``empty_text``, ``reserved_token``, or ``bad_record`` if placeholders and images differ in number.
    """
    if template not in TEMPLATES:
        raise ValueError(f"unknown template {template!r}; known: {', '.join(TEMPLATES)}")
    if not text.strip():
        raise RecordError("empty_text", "the text to be scored is empty")
    _check_reserved(text)
    user = _user_content(question, list(images))
    if template == "answer":
        return [{"role": "user", "content": user}, {"role": "assistant", "content": [_text(text)]}]
    said = [part for part in user if part["type"] == "image" or part["text"]]
    return [{"role": "user", "content": [*said, _text(text)]}]


def turn_messages(turns: Sequence[dict[str, str]], images: Sequence[Any]) -> list[Message]:
    """Return the chat messages of a conversation; the last assistant turn is what its score is about.

    Args:
        turns: ``{"role": "system" | "user" | "assistant", "content": str}``; user turns may hold ``<image>``
            placeholders, kept where they are. Without any placeholder, all images open the first user turn.
        images: in order of their placeholders over the whole conversation.

    Raises:
        RecordError: ``empty_text`` (no assistant turn, or an empty last one), ``reserved_token``, or ``bad_record``.
    """
    if not turns or turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
        raise RecordError("empty_text", "the conversation does not end with an answer to be scored")
    return _conversation(turns, images)


def prompt_messages(turns: str | Sequence[Mapping[str, str]], images: Sequence[Any]) -> list[Message]:
    """Return the chat messages that a model is to answer; render them with ``open_turn=True``.

    Args:
        turns: a question, or turns as in :func:`turn_messages` of which the last is the user's.
        images: as in :func:`turn_messages`.

    Raises:
        RecordError: ``empty_text`` (the last turn is not the user's, or there is nothing to answer),
            ``reserved_token``, or ``bad_record``.
    """
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if wrong := [turn for turn in turns if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str)]:
        raise RecordError("bad_record", f"a turn needs a role ({', '.join(ROLES)}) and text: {str(wrong[0])[:80]}")
    if not turns or turns[-1]["role"] != "user" or not (turns[-1]["content"].strip() or images):
        raise RecordError("empty_text", "the conversation does not end with a question to be answered")
    return _conversation(turns, images)


def thinking_prompt(path: str | Path = THINKING) -> str:
    """Return the system prompt that asks for ``<think>`` and ``<answer>`` tags.

    Args:
        path: a file in the published format (LMDeploy's chat template, JSON), of which ``meta_instruction`` is read.

    Raises:
        JobError: no such file, or no prompt in it.
    """
    try:
        prompt = json.loads(Path(locate(path)).read_text(encoding="utf-8"))["meta_instruction"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{path} holds no meta_instruction: {error}") from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise JobError(f"meta_instruction of {path} is empty")
    return prompt


def render(tokenizer: Any, messages: list[Message], template: Template = "answer", open_turn: bool = False) -> str:
    """Return the prompt text, one placeholder per image, by the checkpoint's own chat template.

    Args:
        tokenizer: the checkpoint's tokeniser or processor.
        open_turn: end with the head of an assistant turn (as ``published_readme`` always does).
    """
    opened = open_turn or template == "published_readme"
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)


def _conversation(turns: Sequence[Mapping[str, str]], images: Sequence[Any]) -> list[Message]:
    wanted = sum(turn["content"].count(IMAGE) for turn in turns if turn["role"] == "user")
    if wanted not in (0, len(images)):
        raise RecordError("bad_record", f"{wanted} {IMAGE} placeholders for {len(images)} images")
    left, messages = list(images), []
    for turn in turns:
        if turn["role"] == "user":
            share = turn["content"].count(IMAGE) if wanted else len(left)
            messages.append({"role": "user", "content": _user_content(turn["content"], left[:share])})
            left = left[share:]
        else:
            _check_reserved(turn["content"])
            messages.append({"role": turn["role"], "content": [_text(turn["content"])]})
    if left:
        raise RecordError("bad_record", f"{len(left)} images but no user turn to show them in")
    return messages


def _user_content(text: str, images: list[Any]) -> list[Message]:
    _check_reserved(text)
    pieces = text.split(IMAGE)
    if len(pieces) == 1:
        pieces = [*[""] * len(images), text]
    if len(pieces) - 1 != len(images):
        raise RecordError("bad_record", f"{len(pieces) - 1} {IMAGE} placeholders for {len(images)} images")
    content = [_text(pieces[0])] if pieces[0] else []
    for image, piece in zip(images, pieces[1:], strict=True):
        # The newline that data sets write after a placeholder separates it from the text and is not part of it.
        content += [_image(image), _text(piece.removeprefix("\n"))]
    parts = [part for part in content if part["type"] == "image" or part["text"]]
    return parts if parts and parts[-1]["type"] == "text" else [*parts, _text("")]


def _image(image: Any) -> Message:
    return {"type": "image", "image": image}


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _check_reserved(text: str) -> None:
    for token in RESERVED:
        if token in text:
            raise RecordError("reserved_token", f"the text contains {token}, which stands for image features")
