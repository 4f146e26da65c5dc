"""Instruction data from made scenes and captioned images: questions with answers of a known kind, evenly drawn."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from src.chat import thinking_prompt
from src.dataset.arrow_cache import IMAGE
from src.dataset.images import encoded_image
from src.dataset.records import DataSpec, read_records, resolve_root
from src.dataset.scene_canvas import pick
from src.dataset.scene_kinds import KINDS as SCENES
from src.dataset.scene_questions import questions
from src.dataset.scene_text import article, captions, plural
from src.dataset.scenes import Scene, make_scene, png_bytes
from src.errors import RecordError

KINDS = ("caption", "yes_no", "count", "colour", "relation", "scene", "grounding")
DESCRIBE = (
    "Describe the image.",
    "What does the image show?",
    "Write a caption of the image.",
    "Describe the scene in one sentence.",
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", IMAGE),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("kind", pa.string()),
    ]
)
_ROW_GROUP = 256
Turn = tuple[str, str, str]  # kind, question, answer
Conversation = dict[str, Any]  # id, image (PNG or other encoded bytes), name of the image, turns; maybe system prompt


def scene_turns(scene: Scene, rng: np.random.Generator, kinds: Sequence[str] = KINDS) -> list[Turn]:
    """One question of each kind about a scene, in the order of ``kinds``."""
    asked = {one["type"]: (one["question"], one["answer"]) for one in questions(
        scene.facts, scene.objects, scene.image.size, rng)}  # fmt: skip
    told = {
        "caption": lambda: (pick(rng, DESCRIBE), captions(scene.facts, rng)[0]),
        "yes_no": lambda: _presence(scene, rng),
        "colour": lambda: asked[pick(rng, ("colour", "landmark_colour"))],
    }
    turns: dict[str, Turn] = {}  # by question: of one asked again, the answer could be copied
    for kind in kinds:
        question, answer = told[kind]() if kind in told else asked[kind]
        turns.setdefault(question, (kind, question, answer))
    return list(turns.values())


def _presence(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Whether something is in the picture: yes and no alike often, for every role that a thing may have.

    What is asked for is always something that scenes of this kind may hold, or its name would give the answer away.
    """
    rules, things = SCENES[scene.kind], scene.facts.things
    roles: tuple[Sequence[str], ...] = (tuple(rules.counted), tuple(rules.landmarks), rules.extras)
    open_roles = [role for role in roles if 0 < len({*role} & {*things}) < len(role)]
    role = pick(rng, open_roles)
    present = bool(rng.integers(2))
    name = pick(rng, [name for name in role if (name in things) == present])
    return f"Is there {article(name)} in the image?", "yes" if present else "no"


def scene_thought(scene: Scene) -> str:
    """What there is to see in a scene, in few words, from which its questions can be answered."""
    facts = scene.facts
    things = facts.category if facts.count == 1 else plural(facts.category)
    landmark = f"the {facts.landmark_colour} {facts.landmark}"
    seen = f"{facts.kind} : {facts.count} {facts.colour} {things} {facts.relation} {landmark}"
    return " , ".join([seen, *facts.extras])


def scene_conversations(
    seeds: Iterable[int], kinds: Sequence[str], each: int, size: int, thinking: bool = False
) -> Iterator[Conversation]:
    """Conversations about made scenes, ``each`` of a scene, of different kinds; every kind equally often.

    Args:
        seeds: of the scenes, which decide everything else too.
        each: at most as many as there are kinds.
        size: side of the images in pixels.
        thinking: under the reasoning prompt, each answer in its format with :func:`scene_thought` before it.
    """
    system = {"system": thinking_prompt()} if thinking else {}
    for number, seed in enumerate(seeds):
        scene = make_scene(seed, size=size)
        rng = np.random.Generator(np.random.PCG64([seed, 5]))
        # Kinds go round from scene to scene, so that each is asked equally often whatever their number.
        chosen = [kinds[(number * each + k) % len(kinds)] for k in range(each)]
        image = png_bytes(scene.image)
        for kind, question, answer in scene_turns(scene, rng, [chosen[int(k)] for k in rng.permutation(each)]):
            told = f"<think>{scene_thought(scene)}</think><answer>{answer}</answer>" if thinking else answer
            yield {"id": f"scene-{seed:08d}-{kind}", "image": image, "name": f"{seed:08d}.png",
                   "turns": [(kind, question, told)], **system}  # fmt: skip


def caption_conversations(spec: DataSpec, errors: Counter[str], seed: int = 0) -> Iterator[Conversation]:
    """A conversation for each caption of a captioned data set, of the kind ``real_caption``.

    Args:
        errors: counts the records that cannot be used, by kind of error.

    Raises:
        JobError: as :func:`src.dataset.records.read_records`.
    """
    root = resolve_root(spec)
    rng = np.random.default_rng(seed)
    for record in read_records(spec):
        try:
            if record.error or not record.captions:
                raise record.error or RecordError("empty_text", "no caption with a letter in it")
            image, kind = encoded_image(record.images[0], root)
        except RecordError as error:
            errors[error.kind] += 1
            continue
        for number, text in enumerate(record.captions):
            turn = ("real_caption", pick(rng, DESCRIBE), text)
            yield {"id": f"{record.id}#{number}", "image": image, "name": f"real-{record.row:07d}.{kind.lower()}",
                   "turns": [turn]}  # fmt: skip


def in_turns(conversations: Iterable[Conversation], turns: int) -> Iterator[Conversation]:
    """Up to ``turns`` successive conversations about one image as one; its kind is that of its last turn."""
    held: Conversation | None = None
    for one in conversations:
        if held and held["name"] == one["name"] and len(held["turns"]) < turns:
            held = {**one, "turns": [*held["turns"], *one["turns"]]}
        else:
            if held:
                yield held
            held = one
    if held:
        yield held


def write_instructions(conversations: Iterable[Conversation], path: Path) -> Counter[str]:
    """Write conversations and return how many turns there are of each kind.

    ``.parquet``: rows ``id, image, question, answer, kind`` with the images inside, a conversation of one turn each.
    ``.jsonl``: ShareGPT objects ``id, kind, images, messages``, the images in a folder ``images`` beside it.

    Raises:
        ValueError: another suffix; or a conversation of several turns, or with a system prompt, for Parquet.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{path} is neither .parquet nor .jsonl")
    counts: Counter[str] = Counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")

    def counted() -> Iterator[Conversation]:
        for one in conversations:
            counts.update(kind for kind, *_ in one["turns"])
            yield one

    (_write_parquet if path.suffix == ".parquet" else _write_sharegpt)(counted(), part)
    part.replace(path)
    return counts


def _write_parquet(conversations: Iterable[Conversation], path: Path) -> None:
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for one in conversations:
            if len(one["turns"]) > 1 or "system" in one:
                raise ValueError("Parquet takes conversations of one turn without a system prompt")
            ((kind, question, answer),) = one["turns"]
            image = {"bytes": one["image"], "path": one["name"]}
            rows.append({"id": one["id"], "image": image, "question": question, "answer": answer, "kind": kind})
            if len(rows) == _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def _write_sharegpt(conversations: Iterable[Conversation], path: Path) -> None:
    (path.parent / "images").mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as lines:
        for one in conversations:
            image = path.parent / "images" / one["name"]
            image.write_bytes(one["image"])
            messages = [{"from": "system", "value": one["system"]}] if "system" in one else []
            for number, (_, question, answer) in enumerate(one["turns"]):
                messages.append({"from": "human", "value": question if number else f"<image>\n{question}"})
                messages.append({"from": "gpt", "value": answer})
            told = {"id": one["id"], "kind": one["turns"][-1][0], "images": [f"images/{one['name']}"]}
            lines.write(json.dumps({**told, "messages": messages}, ensure_ascii=False) + "\n")
