"""CLIP-like dual encoders behind one face: unit image and text features, from transformers or from open_clip.

>>> from src.model.clip import load_clip
>>> clip = load_clip("openai/clip-vit-large-patch14")     # CLIP or SigLIP: a folder or hub id of transformers
>>> clip = load_clip("RemoteCLIP-ViT-L-14.pt")            # an open_clip checkpoint, its architecture in the name
>>> clip = load_clip("open_clip:ViT-B-32:RS5M.pt")        # or given beside it
>>> pixels = torch.stack([clip.preprocess(image) for image in images])
>>> clip.image_features(pixels) @ clip.text_features(["a river beside fields ."]).T
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor

from src.errors import JobError
from src.model.checkpoint import locate

NANO_CLIP = "assets/nano/clip"  # ships with the project; found from any working directory
OPEN_CLIP_CONFIG = "open_clip_config.json"
_CHECKPOINTS = (".pt", ".pth", ".bin", ".safetensors")
_LIBRARIES = ("torch", "torchvision", "pillow")  # decide about features beside the model's own
# of a configuration: where and by what it was saved, and the type of weights, which the weights themselves tell
_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


class Clip(ABC):
    """A dual encoder on its device, in evaluation mode.

    Attributes:
        path: where it was loaded from.
        model: the model of the library that it comes from.
        backend: ``transformers`` or ``open_clip``.
        package: what the library is installed as.
    """

    backend: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, path: str, model: nn.Module):
        self.path = path
        self.model: Any = model.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return next(self.model.parameters()).dtype

    @property
    def logit_scale(self) -> float:
        """The factor of cosines in the model's logits (100 in OpenAI's models)."""
        return float(self.model.logit_scale.detach().exp())

    def fingerprint(self) -> str:
        """Digest of what features depend on: weights, architecture, preprocessing, tokeniser, versions of libraries."""
        digest = hashlib.blake2b(digest_size=12)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        architecture = json.dumps(_architecture_only(self._config()), sort_keys=True, default=str)
        versions = [f"{package} {version(package)}" for package in (self.package, *_LIBRARIES)]
        digest.update(f"{self.backend} {architecture} {self._settings()} {versions}".encode())
        return digest.hexdigest()

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image as the model's input, float32 (3, height, width). Safe in several threads."""

    @torch.inference_mode()
    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit features of preprocessed images: (n, 3, height, width) to float32 (n, dim), on the model's device."""
        found = self._encode_images(pixel_values.to(self.device, self.dtype, non_blocking=True))
        return nn.functional.normalize(found.float(), dim=-1)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features of texts, cut to the model's context: float32 (n, dim), on the model's device."""
        return nn.functional.normalize(self._encode_texts(list(texts)).float(), dim=-1)

    @abstractmethod
    def _encode_images(self, pixel_values: Tensor) -> Tensor: ...

    @abstractmethod
    def _encode_texts(self, texts: list[str]) -> Tensor: ...

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """The architecture, as far as weights do not show it: activation, number of heads ..."""

    @abstractmethod
    def _settings(self) -> str:
        """What preprocessing and tokeniser do, as text."""


class TransformersClip(Clip):
    """``CLIPModel``, ``SiglipModel`` and their kin, with the processor saved beside them."""

    backend = package = "transformers"

    def __init__(self, path: str, model: nn.Module, processor: Any):
        super().__init__(path, model)
        self.processor = processor
        config = self.model.config
        # SigLIP was trained on texts padded to their full length, without a mask
        siglip = config.model_type.startswith("siglip")
        length = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._padding = {"padding": "max_length" if siglip else True, "truncation": True, "max_length": length}
        self._keys = ("input_ids",) if siglip else ("input_ids", "attention_mask")

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.processor.image_processor(images=[image], return_tensors="pt").pixel_values[0]

    def _encode_images(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output

    def _encode_texts(self, texts: list[str]) -> Tensor:
        tokens = self.processor.tokenizer(texts, return_tensors="pt", **self._padding).to(self.device)
        return self.model.get_text_features(**{key: tokens[key] for key in self._keys}).pooler_output

    def _config(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    def _settings(self) -> str:
        return (
            f"{self.processor.image_processor.to_json_string()} {_tokeniser(self.processor.tokenizer)} {self._padding}"
        )


class OpenClip(Clip):
    """A model of open_clip, with its transform, its tokeniser, and its ``config`` (open_clip's ``model_cfg``)."""

    backend, package = "open_clip", "open_clip_torch"

    def __init__(self, path: str, model: nn.Module, transform: Any, tokenizer: Any, config: dict[str, Any]):
        super().__init__(path, model)
        self._transform, self.tokenizer, self.config = transform, tokenizer, config

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._transform(image)

    def _encode_images(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))

    def _config(self) -> dict[str, Any]:
        return self.config

    def _settings(self) -> str:
        probe = self.tokenizer(["Two planes, a runway: 12 % of it is grey."]).tolist()
        steps = re.sub(r" at 0x[0-9a-f]+", "", str(self._transform))  # functions print where they happen to lie
        return f"{steps} {type(self.tokenizer).__name__} {probe}"


def load_clip(path: str | Path, device: str = "auto", dtype: str | torch.dtype = "auto") -> Clip:
    """Load a dual encoder with its own preprocessing.

    Args:
        path: a folder or hub id in the layout of transformers; a folder with ``open_clip_config.json``;
            ``hf-hub:<id>`` of an open_clip model; or a checkpoint file of open_clip (as RemoteCLIP, GeoRSCLIP and
            SkyCLIP are published) whose name holds its architecture, else ``open_clip:<architecture>:<file>``.
        device: ``auto`` is CUDA where there is one, else the CPU.
        dtype: ``auto`` is bfloat16 on a GPU and float32 on the CPU.

    Raises:
        JobError: no such model, no dual encoder, incomplete weights, or an unknown architecture.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
        if not isinstance(dtype, torch.dtype):
            raise JobError(f"unknown dtype {dtype!r}; such as float32 or bfloat16")
    name = str(path)
    if name.startswith(("open_clip:", "hf-hub:")) or Path(name).suffix in _CHECKPOINTS:
        return _load_open_clip(name, device, dtype)
    name = locate(name)
    if Path(name, OPEN_CLIP_CONFIG).is_file() and not Path(name, "config.json").is_file():
        return _load_open_clip(name, device, dtype)
    return _load_transformers(name, device, dtype)


def _load_transformers(path: str, device: str, dtype: Any) -> Clip:
    try:
        model, found = AutoModel.from_pretrained(path, dtype=dtype, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(path)
    except Exception as error:  # of a damaged folder the library raises nearly anything
        raise JobError(f"no CLIP model at {path!r}: {_reason(error)}") from error
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise JobError(f"{path!r} is a {type(model).__name__}, not a model of image and text features")
    if missing := sorted(found["missing_keys"]):
        raise JobError(f"{path!r} leaves {len(missing)} weights uninitialised: {', '.join(missing[:8])}")
    if not getattr(processor, "image_processor", None) or not getattr(processor, "tokenizer", None):
        raise JobError(f"{path!r} lacks an image processor or a tokenizer")
    return TransformersClip(path, model.to(device), processor)


def _load_open_clip(name: str, device: str, dtype: Any) -> Clip:
    import open_clip

    architecture, weights = _architecture(name, open_clip.list_models())
    try:
        model, transform = open_clip.create_model_from_pretrained(
            architecture, pretrained=weights, device=device, weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # of a damaged file or odd settings the library raises nearly anything
        raise JobError(f"open_clip cannot load {name!r}: {_reason(error)}") from error
    return OpenClip(name, model.to(dtype), transform, tokenizer, open_clip.get_model_config(architecture))


def _tokeniser(tokenizer: Any) -> str:
    """All that decides tokens: normaliser, splits, merges, vocabulary; not the padding that the last call asked for."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return f"{type(tokenizer).__name__} {sorted(tokenizer.get_vocab().items())}"
    parts = json.loads(backend.to_str())
    return json.dumps({name: part for name, part in parts.items() if name not in ("padding", "truncation")})


def _architecture_only(config: Any) -> Any:
    """A configuration without what does not change features, at any depth."""
    if not isinstance(config, dict):
        return config
    return {str(key): _architecture_only(value) for key, value in config.items() if key not in _NOT_ARCHITECTURE}


def _reason(error: Exception) -> str:
    """The beginning of its text, on one line: several messages of the libraries have the names in later ones."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _architecture(name: str, known: Sequence[str]) -> tuple[str, str | None]:
    """What open_clip calls the architecture, and the checkpoint file if that is not within it."""
    if name.startswith("hf-hub:"):
        return name, None
    if Path(name).is_dir():
        return f"local-dir:{name}", None
    architecture, weights = "", name
    if name.startswith("open_clip:"):
        _, architecture, weights = [*name.split(":", 2), ""][:3]
        if architecture not in known or not weights:
            raise JobError(f"{name!r}: give open_clip:<architecture>:<file>, such as open_clip:ViT-B-32:model.pt")
    if not Path(weights).is_file():
        raise JobError(f"no such checkpoint: {weights}")
    if not architecture:
        within = [model for model in known if model in Path(weights).stem]
        if not within:
            raise JobError(f"{weights}: no architecture in the name; say open_clip:<architecture>:{weights}")
        architecture = max(within, key=len)
    return architecture, weights
