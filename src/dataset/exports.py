"""Write kept pairs in the formats that trainers read: a CSV, a ShareGPT list, a saved data set, WebDataset tars.

One row, conversation or sample is one kept pair, so an image with several kept captions comes several times. Each
writer takes the pairs in a stream and writes below a folder that is still under a temporary name.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from src.dataset.export_pairs import Pair, Picture, messages
from src.dataset.fields import Turn
from src.dataset.saved_datasets import write_saved
from src.dataset.tars import add_member
from src.dataset.writers import csv_writer
from src.errors import JobError

SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
WEB_FORMATS = ("JPEG", "PNG", "WEBP")  # which readers of WebDataset shards know by their endings
REGISTRY = "dataset_info.json"
_TABLE_BYTES, _TABLE_ROWS = 2**26, 4096


def write_clip_csv(pairs: Iterator[Pair], target: Path, store: Path | None) -> None:
    """``filename,title,score,id``, one caption a row, for CLIP training.

    Args:
        pairs: of one image each; of a conversation the last answer is the title.
        target: the file.
        store: the folder below which images are written under their names; None: they stay where they are.
    """
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv_writer(file)
        writer.writerow(["filename", "title", "score", "id"])
        for pair in pairs:
            _store(pair.image, store)
            writer.writerow([pair.image.name, pair.text, repr(pair.score), pair.id])


def write_sharegpt(pairs: Iterator[Pair], target: Path, store: Path | None, question: str) -> None:
    """A JSON list of ``{images, messages: [{from, value}], id, score}``, for LLaMA-Factory and its kin.

    Args:
        pairs: conversations are written turn by turn, a caption as the answer to its question.
        target: the file.
        store: as for ``write_clip_csv``.
        question: for captions whose record has none.
    """
    with target.open("w", encoding="utf-8", newline="") as file:
        between = "[\n"
        for pair in pairs:
            for picture in pair.images:
                _store(picture, store)
            said = [_sharegpt_turn(turn) for turn in messages(pair, question)]
            names = [picture.name for picture in pair.images]
            item = {"images": names, "messages": said, "id": pair.id, "score": pair.score}
            file.write(between + json.dumps(item, ensure_ascii=False))
            between = ",\n"
        file.write("\n]\n")


def write_image_dataset(pairs: Iterator[Pair], target: Path, conversations: bool) -> None:
    """A folder for ``datasets.load_from_disk`` with the columns image, text, question, source, score, id.

    Args:
        pairs: of one image each, whose encoded bytes are kept as they are.
        target: the folder, which is made.
        conversations: there is also a column ``messages`` of ``{role, content}``.
    """
    from datasets import Features, Image, List, Value  # slow to import, and seldom needed

    columns = {"image": Image(), **dict.fromkeys(("text", "question", "source"), Value("string"))}
    columns |= {"score": Value("float64"), "id": Value("string")}
    if conversations:
        columns["messages"] = List({"role": Value("string"), "content": Value("string")})
    schema = Features(columns).arrow_schema
    write_saved(None, schema, _tables(pairs, schema), target)


def write_webdataset(pairs: Iterator[Pair], target: Path, shard_size: int) -> None:
    """Tars ``000000.tar`` ... of samples ``<key>.jpg|png|webp``, ``<key>.txt``, ``<key>.json``.

    The JSON has id, score, source and question, and the messages of a conversation.

    Args:
        pairs: of one image each, in one of ``WEB_FORMATS``.
        target: the folder, which is made.
        shard_size: samples in a tar.
    """
    target.mkdir()
    for number, samples in groupby(enumerate(pairs), key=lambda item: item[0] // shard_size):
        with tarfile.open(target / f"{number:06d}.tar", "w") as archive:
            for _, pair in samples:
                facts: dict[str, Any] = {"id": pair.id, "score": pair.score}
                facts |= {"source": pair.source, "question": pair.question}
                if pair.turns:
                    facts["messages"] = [_sharegpt_turn(turn) for turn in pair.turns]
                _add(archive, f"{pair.key}.{pair.image.extension}", pair.image.content)
                _add(archive, f"{pair.key}.txt", pair.text.encode())
                _add(archive, f"{pair.key}.json", json.dumps(facts, ensure_ascii=False).encode())


def registry_with(folder: Path, name: str, file_name: str) -> dict[str, Any]:
    """The content of LLaMA-Factory's ``dataset_info.json`` in ``folder`` with an entry for a ShareGPT file.

    Raises:
        JobError: the present file is no JSON object, or has the name for another file.
    """
    path = folder / REGISTRY
    present: Any = {}
    if path.exists():
        try:
            present = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JobError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(present, dict):
        raise JobError(f"{path} holds no object, so no entry can be added to it")
    taken = present.get(name)
    if taken is not None and not (isinstance(taken, dict) and taken.get("file_name") == file_name):
        raise JobError(f"{path} has {name!r} already, for another file; choose another name")
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    columns = {"messages": "messages", "images": "images"}
    entry = {"file_name": file_name, "formatting": "sharegpt", "columns": columns, "tags": tags}
    return present | {name: entry}


def _sharegpt_turn(turn: Turn) -> dict[str, str]:
    return {"from": SHAREGPT_ROLES[turn["role"]], "value": turn["content"]}


def _store(picture: Picture, folder: Path | None) -> None:
    if folder is None:
        return
    path = folder / picture.name
    if not path.exists():  # several captions, and several records, may share an image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.content)


def _tables(pairs: Iterator[Pair], schema: pa.Schema) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    held = 0
    for pair in pairs:
        image = {"bytes": pair.image.content, "path": f"{pair.key}.{pair.image.extension}"}
        row = {"image": image, "text": pair.text, "question": pair.question, "source": pair.source}
        rows.append(row | {"score": pair.score, "id": pair.id, "messages": list(pair.turns)})
        held += len(pair.image.content)
        if held >= _TABLE_BYTES or len(rows) == _TABLE_ROWS:
            yield pa.Table.from_pylist(rows, schema=schema)
            rows, held = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, schema=schema)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    add_member(archive, member, io.BytesIO(content))
