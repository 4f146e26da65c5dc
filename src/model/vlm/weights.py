"""Weights of checkpoints of any size, one at a time: read where they lie, checked against a model, and written."""

import json
import pickle
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from src.errors import JobError
from src.model.checkpoint import WEIGHT_FILES, WEIGHT_INDEXES

SHARD_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Weight:
    """A weight that is read when it is needed.

    Attributes:
        shape: of what ``read`` gives.
    """

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def changed(self, change: Callable[[Tensor], Tensor], shape: Iterable[int] | None = None) -> "Weight":
        """This weight after ``change``, which gives it ``shape`` (None: its own)."""
        return Weight(self.shape if shape is None else tuple(shape), lambda: change(self.read()))


Weights = dict[str, Weight]


def stored_weights(path: str | Path) -> Weights:
    """The weights of a checkpoint, by their names, in the order in which they are stored.

    Args:
        path: folder with safetensors or ``pytorch_model`` files, with an index or without, or one such file. Names of
            nested dictionaries are joined by dots; what is no weight is left out.

    Raises:
        JobError: no such checkpoint, or one that cannot be read; ``.bin`` and ``.pt`` may hold nothing but weights.
    """
    weights: Weights = {}
    for file in _files(Path(path)):
        try:
            shapes = _shapes(file)
        except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
            raise JobError(f"{file} cannot be read as weights alone: {str(error).splitlines()[0]}") from error
        weights |= {name: Weight(shape, _reader(file, name)) for name, shape in shapes.items()}
    return weights


def write_weights(weights: Mapping[str, Weight], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write ``model.safetensors``, or shards with their index; holds one shard at a time in memory."""
    shards: list[list[str]] = []
    filled: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal filled, size
        save_file(filled, _shard(folder, len(shards)), metadata={"format": "pt"})
        shards.append(list(filled))
        filled, size = {}, 0

    for name, weight in tqdm(weights.items(), unit="weight", desc="writing"):
        tensor = weight.read()
        if filled and size + tensor.nbytes > shard_bytes:
            flush()
        # Copied: what is mapped from a file, or shared by two names, must not be.
        filled[name] = tensor.clone(memory_format=torch.contiguous_format)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(shards) == 1:
        _shard(folder, 0).rename(folder / "model.safetensors")
        return
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for number, name in enumerate(names):
        _shard(folder, number).rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {weight: file for file, held in zip(names, shards, strict=True) for weight in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_model(
    model: PreTrainedModel,
    weights: Mapping[str, Weight],
    tokenizer: Any,
    ends: int | list[int],
    image_token: int,
    compat: str,
    folder: Path,
) -> None:
    """Write a converted model, without its processor.

    Args:
        model: of which class and configuration it is; its own weights do not count.
        ends: tokens that end a text.
        image_token: which is never generated.
        compat: as converted, kept in the configuration.
    """
    config: Any = model.config
    config.architectures, config.compat = [type(model).__name__], compat
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[image_token],
    ).save_pretrained(folder)
    write_weights(weights, folder)


def refuse_other_weights(weights: Mapping[str, Weight], model: torch.nn.Module, source: str | Path) -> None:
    """Check that ``weights`` are those of ``model``, which may lie on the device ``meta``.

    Raises:
        JobError: weights that are missing, that the model has no place for, or of another shape, by name.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wrong = {
        "missing": wanted.keys() - weights.keys(),
        "unused": weights.keys() - wanted.keys(),
        "of another shape": {
            f"{name} {weights[name].shape} for {shape}"
            for name, shape in wanted.items()
            if name in weights and weights[name].shape != shape
        },
    }
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in wrong.items() if names]
    if told:
        raise JobError(f"the weights of {source} are not those of its model; {'; '.join(told)}")


def _some(names: Collection[str], most: int = 8) -> str:
    shown = ", ".join(sorted(names)[:most])
    return shown + (f", and {len(names) - most} more" if len(names) > most else "")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in WEIGHT_INDEXES:
        if (path / name).is_file():
            try:
                stored = json.loads((path / name).read_text(encoding="utf-8"))["weight_map"]
                return [path / file for file in dict.fromkeys(stored.values())]
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise JobError(f"{path / name} is no index of weights: {error!r}") from error
    if found := [path / name for name in WEIGHT_FILES if (path / name).is_file()]:
        return found[:1]
    raise JobError(f"{path} holds no weights (looked for {', '.join(WEIGHT_INDEXES + WEIGHT_FILES)})")


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number}.safetensors"


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    held = torch.load(file, map_location="meta", weights_only=True)
    if not isinstance(held, Mapping):
        raise ValueError(f"it holds a {type(held).__name__}, not weights by name")
    return {name: tuple(tensor.shape) for name, tensor in _flat(held).items()}


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    if file.suffix == ".safetensors":
        return lambda: _opened(file).get_tensor(name)
    return lambda: _opened(file)[name]


@lru_cache(maxsize=2)  # weights are read in the order in which they are stored, some with those of an adapter
def _opened(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return safe_open(file, "pt").__enter__()
    try:
        return _flat(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except RuntimeError:  # a file of before PyTorch 1.6 cannot be mapped
        return _flat(torch.load(file, map_location="cpu", weights_only=True))


def _flat(held: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in held.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
    return flat
