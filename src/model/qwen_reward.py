"""The score model: Qwen2-VL without its language-model head, and one number for a whole conversation in its place.

>>> from src.model.qwen_reward import Qwen2Reward
>>> model = Qwen2Reward.from_pretrained("assets/nano/scorer")
>>> outputs = model(**inputs, return_loss=False)   # inputs: what the checkpoint's AutoProcessor returns
>>> outputs.values                                 # (rows,), each > 0; also as outputs.value
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLPreTrainedModel
from transformers.utils import ModelOutput

from src.errors import JobError
from src.model.checkpoint import (
    KEY_MAPPING,
    checkpoint_keys,
    default_position_scheme,
    layout_of,
    locate,
    refuse_if_incomplete,
    usable_attention,
)
from src.model.packing import packed_ends, packed_mask, packed_positions
from src.model.ranking import ranking_accuracy, ranking_loss

POSITION_SCHEMES = ("mrope", "sequential")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

log = logging.getLogger(__name__)


@dataclass
class Qwen2RewardOutput(ModelOutput):
    """What :meth:`Qwen2Reward.forward` returns.

    Attributes:
        loss: scalar mean ranking loss over groups, or None if it was not asked for.
        values: ``(rows,)`` float32 scores, each > 0.
        ranking_accuracy: scalar in 0..1, share of pairs ranked right, or None with the loss.
        logits: ``(rows, length, hidden)`` last hidden states (the published class used this name for them).
        past_key_values: the cache, if ``use_cache`` was set.
    """

    loss: Tensor | None = None
    values: Tensor | None = None  # type: ignore[assignment]  # the published name hides dict.values
    ranking_accuracy: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None

    @property
    def value(self) -> Tensor | None:
        """The same tensor as ``values``, under the name of the published README."""
        return self.values


class Qwen2Reward(Qwen2VLPreTrainedModel):
    """Qwen2-VL with a linear head (hidden -> 1, no bias) and softplus, read at the last real token of each row.

    Config keys of its own: ``ranked_candidate_num`` (K, rows per ranked group, default 2) and ``position_scheme``
    (``mrope`` or ``sequential``, see :mod:`src.model.checkpoint`).
    """

    def __init__(self, config: Qwen2VLConfig):
        super().__init__(config)
        config.ranked_candidate_num = getattr(config, "ranked_candidate_num", 2)
        config.position_scheme = getattr(config, "position_scheme", "mrope")
        if config.position_scheme not in POSITION_SCHEMES:
            raise JobError(f"position_scheme is {config.position_scheme!r}; use one of {', '.join(POSITION_SCHEMES)}")
        self.model = Qwen2VLModel(config)
        self.reward_head = nn.Linear(config.get_text_config().hidden_size, 1, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str, *args: Any, position_scheme: str = "auto", **kwargs: Any
    ) -> Any:
        """Load a score model (published or our layout), or put a new head on a plain Qwen2-VL checkpoint.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            position_scheme: ``mrope``, ``sequential`` or ``auto`` (the config's, else the layout's).
            kwargs: as for :meth:`transformers.PreTrainedModel.from_pretrained`, plus config keys such as
                ``ranked_candidate_num``. ``attn_implementation="flash_attention_2"`` falls back to SDPA where it must.

        Raises:
            JobError: no such model; or a backbone weight (or a score model's head) is not in the checkpoint.
        """
        path = locate(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
        layout = layout_of(checkpoint_keys(path, **hub))
        config = kwargs.pop("config", None)
        if config is None:
            config = Qwen2VLConfig.from_pretrained(path, **hub)
        if layout == "backbone" and "Qwen2Reward" in (config.architectures or []):
            raise JobError(f"checkpoint {path!r} calls itself a score model but has no reward_head.weight")
        if position_scheme == "auto":
            position_scheme = getattr(config, "position_scheme", None) or default_position_scheme(layout)
        config.position_scheme = position_scheme
        config.ranked_candidate_num = kwargs.pop("ranked_candidate_num", getattr(config, "ranked_candidate_num", 2))

        target = kwargs.get("device_map")
        target = target.get("") if isinstance(target, dict) else target
        on_gpu = torch.cuda.is_available() and target is not None and "cpu" not in str(target)
        half = kwargs.get("dtype", kwargs.get("torch_dtype")) not in (torch.float32, "float32")
        kwargs["attn_implementation"] = usable_attention(kwargs.get("attn_implementation"), on_gpu, half)
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            path, *args, config=config, key_mapping=KEY_MAPPING, output_loading_info=True, **kwargs
        )
        model, info = loaded
        refuse_if_incomplete(path, layout, info["missing_keys"])
        log.info("score model %s: %s layout, %s positions", path, layout, position_scheme)
        if layout == "backbone":
            log.warning("%s is a plain Qwen2-VL checkpoint: the reward head is new and untrained", path)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save in our layout, whatever layout the weights came from."""
        super().save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})

    def save_as(self, folder: str | Path, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None) -> None:
        """Save weights (the model's own, or as gathered from several processes) in ``dtype``; the config says so."""
        weights = self.state_dict() if weights is None else weights
        self.save_pretrained(folder, state_dict={name: w.to(dtype).contiguous() for name, w in weights.items()})
        config = copy.deepcopy(self.config)
        config.dtype = dtype
        config.architectures = [type(self).__name__]
        config.save_pretrained(folder)

    def encode_images(self, pixel_values: Tensor, image_grid_thw: Tensor | None) -> tuple[Tensor, ...]:
        """Run the vision tower once per image.

        Args:
            pixel_values: ``(patches of all images, channels * 2 * patch * patch)``, normalised.
            image_grid_thw: ``(images, 3)`` patch grid of each.

        Returns:
            one ``(image tokens, hidden)`` tensor per image; pass them, concatenated, as ``image_embeds``.
        """
        return tuple(self.model.get_image_features(pixel_values, image_grid_thw, return_dict=True).pooler_output)

    def positions(self, input_ids: Tensor, attention_mask: Tensor, image_grid_thw: Tensor | None = None) -> Tensor:
        """Return position ids ``(3, rows, length)`` under the config's scheme.

        A pure function of its arguments: nothing is remembered between calls (the published class did, see
        :mod:`src.model.checkpoint`), and padding on either side shifts nothing.
        """
        if self.config.position_scheme == "sequential" or image_grid_thw is None:
            plain = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            return plain.expand(3, *plain.shape)
        types = (input_ids == self.config.image_token_id).int()
        return self.model.get_rope_index(input_ids, types, image_grid_thw, attention_mask=attention_mask)[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        image_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        return_loss: bool | None = None,
        segment_ids: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,  # noqa: ARG002  # the processor sends it; positions() derives it
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Qwen2RewardOutput | tuple:
        """Score each row at its last real token.

        Args:
            input_ids: ``(rows, length)``, padded on either side.
            attention_mask: ``(rows, cached + length)``, 1 for real tokens; all ones if None.
            position_ids: ``(3, rows, length)``; from :meth:`positions` if None (then nothing may be cached).
            pixel_values, image_grid_thw: as the image processor returns them, images in order of appearance.
            image_embeds: ``(image tokens of all rows, hidden)`` from :meth:`encode_images`, instead of pixel values.
            past_key_values: cache of a prefix that all rows share in shape; ``input_ids`` then continue it.
            return_loss: True computes the ranking loss over groups of K consecutive rows, best first (K =
                ``config.ranked_candidate_num``); False does not; None does if rows come in whole groups of K > 1.

            segment_ids: ``(rows, length)``, if each row packs several answers (see :mod:`src.model.packing`); then
                ``values`` are row after row, answer after answer, NaN for answers that a row has fewer than another,
                and ``attention_mask`` is not used.

        Raises:
            ValueError: ``return_loss=True`` and rows are not a multiple of K; or image tokens and features differ.
        """
        rows, length = input_ids.shape
        if segment_ids is not None:
            if "flash" in str(self.config._attn_implementation):
                raise ValueError("packed rows need attn_implementation sdpa or eager")
            attention_mask = (segment_ids == 0).long()
        elif attention_mask is None:
            cached = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = input_ids.new_ones(rows, cached + length)
        if position_ids is None:
            position_ids = self.positions(input_ids, attention_mask, image_grid_thw)
        if segment_ids is not None:
            position_ids = packed_positions(position_ids, segment_ids)

        inputs_embeds = self.model.get_input_embeddings()(input_ids)
        if image_embeds is None and pixel_values is not None:
            image_embeds = torch.cat(self.encode_images(pixel_values, image_grid_thw))
        if image_embeds is not None:
            image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
            where, _ = self.model.get_placeholder_mask(input_ids, inputs_embeds, image_features=image_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(where, image_embeds)

        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask if segment_ids is None else {"full_attention": packed_mask(segment_ids)},
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        last = packed_ends(attention_mask[:, -length:] if segment_ids is None else segment_ids)
        pooled = hidden[torch.arange(rows, device=hidden.device)[:, None], last].flatten(0, 1)
        values = nn.functional.softplus(self.reward_head(pooled).squeeze(-1).float())
        values = values.masked_fill(last.flatten() < 0, float("nan"))

        loss, accuracy = self._rank(values, return_loss)
        output = Qwen2RewardOutput(loss, values, accuracy, hidden, outputs.past_key_values)
        return output if return_dict else output.to_tuple()

    def _rank(self, values: Tensor, return_loss: bool | None) -> tuple[Tensor | None, Tensor | None]:
        k = self.config.ranked_candidate_num
        whole = len(values) % k == 0
        if return_loss and not whole:
            raise ValueError(f"{len(values)} rows are not whole groups of ranked_candidate_num = {k}")
        if return_loss is False or k < 2 or not whole:
            return (values.new_zeros(()) if return_loss else None), None
        groups = values.view(-1, k)
        return ranking_loss(groups).mean(), ranking_accuracy(groups.detach()).mean()
