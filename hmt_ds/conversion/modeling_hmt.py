"""A Hierarchical Memory Transformer as a transformers model: it reads documents of any length segment by segment.

``hmt-ds convert`` copies this file and those that it imports into every folder that it writes. There they need only
torch and transformers.
"""

from dataclasses import asdict
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from hmt_ds.backbones.hashes import HashedFolder
from hmt_ds.backbones.model import CausalLM
from hmt_ds.backbones.transformers_internals import adopt_properties
from hmt_ds.conversion.forward_options import (
    check_cache,
    check_ids,
    check_mask,
    check_options,
    check_positions,
    first_position,
    select_logits,
)
from hmt_ds.conversion.padding import Alignment, find_trailing_pads, split_rows
from hmt_ds.inference.memory_generation import MemoryGenerationMixin
from hmt_ds.inference.read_cached import CachedReader
from hmt_ds.inference.segment_cache import SegmentCache
from hmt_ds.memory.bptt import read_window
from hmt_ds.memory.cell import HMT
from hmt_ds.memory.segments import IGNORED, Window
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.memory.state import MemoryState

# what clients (Trainer, DeepSpeed, peft, evaluation harnesses) read from a model's configuration; backbones that name
# a size otherwise translate it themselves. A fixed list: transformers tests by hasattr for attributes such as
# rope_parameters, and would copy them into this configuration
OF_BACKBONE = frozenset(
    (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "max_position_embeddings", "n_positions", "tie_word_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    )
)


class HMTConfig(PretrainedConfig):
    """Configuration of a Hierarchical Memory Transformer (HMT): its backbone, and the memory around it.

    The backbone's sizes and special tokens can also be read and set as attributes of this configuration.

    Args:
        backbone: a configuration with ``model_type``, as a mapping.
        memory: settings of the memory by key, such as ``segment_length``.
    """

    model_type = "hmt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # transformers passes dtype and attn_implementation on to these
    sub_configs: ClassVar[dict[str, Any]] = {"backbone": AutoConfig}

    def __init__(self, backbone: Any = None, memory: dict[str, Any] | None = None, **options: Any):
        if isinstance(backbone, dict):
            values = dict(backbone)
            backbone = AutoConfig.for_model(values.pop("model_type"), **values)
        self.backbone = backbone
        self.memory = memory or {}
        super().__init__(**options)
        # transformers' server looks the class up in transformers, where those of a folder are not; files keep its name
        self.architectures = ["AutoModelForCausalLM"]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute that this configuration lacks from the backbone's."""
        backbone = self.__dict__.get("backbone")
        if name in OF_BACKBONE and backbone is not None:
            return getattr(backbone, name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the backbone's attributes there, so that each has one value."""
        backbone = self.__dict__.get("backbone")
        if name in OF_BACKBONE and backbone is not None:
            setattr(backbone, name, value)
        else:
            super().__setattr__(name, value)

    def get_text_config(self, *arguments: Any, **options: Any) -> Any:
        """Return the configuration in which transformers looks for sizes and special tokens: the backbone's.

        Args:
            arguments, options: passed to the backbone configuration's method of the same name.
        """
        return self.backbone or self


class HMTForCausalLM(HashedFolder, PreTrainedModel, MemoryGenerationMixin):
    """A causal language model that reads documents of any length segment by segment, and continues them."""

    config_class = HMTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    # the backbone's own class, which is built with the same setting, says what it supports
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: HMTConfig):
        super().__init__(config)
        model = AutoModelForCausalLM.from_config(config.backbone, dtype=torch.get_default_dtype())
        config.backbone = model.config  # from_config copies it: resizing the embeddings must change the one in use
        self.hmt = HMT(CausalLM(model), MemorySettings(**config.memory))
        adopt_properties(self.hmt, model, prefix="backbone.model.")
        self.post_init()

    @classmethod
    def around(cls, hmt: HMT) -> "HMTForCausalLM":
        """Wrap an existing HMT as a transformers model, sharing its weights.

        Args:
            hmt: the model to wrap.
        """
        backbone = cast(CausalLM, hmt.backbone).model
        with torch.device("meta"):
            model = cls(HMTConfig(backbone.config, asdict(hmt.settings)))
        model.hmt, model.config.backbone = hmt, backbone.config
        adopt_properties(hmt, backbone, prefix="backbone.model.")
        model.generation_config = backbone.generation_config
        return model.train(hmt.training)

    def get_input_embeddings(self) -> Any:
        """Return the backbone's token embeddings module."""
        return self.backbone_model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the backbone's token embeddings module by ``value``."""
        self.backbone_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """Return the backbone's output head module."""
        return self.backbone_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Replace the backbone's output head module by ``new_embeddings``."""
        self.backbone_model.set_output_embeddings(new_embeddings)

    @property
    def backbone_model(self) -> PreTrainedModel:
        """The transformers model that serves as backbone."""
        return cast(CausalLM, self.hmt.backbone).model

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        position_ids: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        past_key_values: SegmentCache | None = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Read whole documents, or continue texts in a cache; compute logits, and the loss if there are labels.

        Args:
            input_ids: ``[batch, tokens]``.
            attention_mask: ``[batch, tokens]``, 0 on padding, which may be anywhere: a padded row gives the results
                that it gives alone. Without a mask, ``pad_token_id`` at the ends of rows is padding. Logits at padding
                mean nothing.
            labels: ``[batch, tokens]``, usually the same as ``input_ids``. They are shifted here; -100 and the labels
                of padding are ignored.
            logits_to_keep: return only the logits of this number of last positions, or at the positions of a tensor; 0
                returns all, ``[batch, tokens, vocabulary]``.
            position_ids: only the default ones are accepted.
            num_items_in_batch: number of labels that the loss is divided by, instead of this call's own: transformers'
                Trainer passes the number in all batches whose gradients it accumulates.
            past_key_values: cache of the text before, changed in place. ``attention_mask`` covers that text too, or the
                new tokens alone. Not with labels.
            use_cache: return ``past_key_values``, to continue after these tokens. Not with labels.
            options: further arguments of transformers models; those that would need another output raise an error.

        Returns:
            The mean cross-entropy in nats over the labels, if there are any, the logits, and the cache, if asked for.

        Raises:
            ValueError: in one line, for an argument that is not supported.
        """
        asked = {name: getattr(self.config, name) for name in ("output_hidden_states", "output_attentions")}
        check_options(asked | options)
        input_ids = check_ids(input_ids)
        if past_key_values is not None or (use_cache and labels is None):
            cache = check_cache(past_key_values, labels)
            logits = self.go_on(input_ids, attention_mask, position_ids, cache, logits_to_keep)
            return CausalLMOutputWithPast(logits=logits, past_key_values=cache)
        alignment = self.find_pads(input_ids, attention_mask, labels, position_ids)
        window = split_rows(input_ids, labels, self.hmt.settings.segment_length, alignment)
        first, end = first_position(logits_to_keep, input_ids.shape[1]), input_ids.shape[1]
        loss, logits = self.read(window, alignment, first, end, with_loss=labels is not None)
        logits = select_logits(logits, logits_to_keep)
        if labels is None:
            return CausalLMOutputWithPast(logits=logits)
        own = (window.labels != IGNORED).sum().clamp(min=1)
        count = own if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=loss.device)
        return CausalLMOutputWithPast(loss=loss / count, logits=logits)

    def find_pads(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None, position_ids: Tensor | None
    ) -> Alignment | None:
        """Find the padding of a batch, by its mask or else by ``pad_token_id`` at the ends of rows.

        Args:
            input_ids: ``[batch, tokens]``.
            attention_mask: ``[batch, tokens]``, 0 on padding; None for no mask.
            labels: ``[batch, tokens]``; None for none.
            position_ids: only the default ones are accepted; None for those.

        Returns:
            A map between padded and left-aligned rows; None if there is no padding.
        """
        real = check_mask(attention_mask, input_ids.shape)
        check_positions(position_ids, real, input_ids.shape)
        if attention_mask is None:
            names = ("bos_token_id", "eos_token_id")
            stored = [getattr(config, name, None) for config in (self.config, self.generation_config) for name in names]
            special = {token for ids in stored for token in (ids if isinstance(ids, list) else [ids])}
            real = find_trailing_pads(input_ids, labels, getattr(self.config, "pad_token_id", None), special)
        return None if real is None else Alignment.of(real)

    def read(
        self, window: Window, alignment: Alignment | None, first: int, end: int, *, with_loss: bool
    ) -> tuple[Tensor, Tensor]:
        """Read whole documents segment by segment, and return the summed loss and the logits.

        Args:
            window: the documents, one per row, cut into segments.
            alignment: map between padded and left-aligned rows; None without padding.
            first, end: range of positions whose logits are returned.
            with_loss: whether to compute the loss.

        Returns:
            The summed loss in nats, and logits ``[batch, end - first, vocabulary]``.
        """
        length = self.hmt.settings.segment_length
        columns = None if alignment is None else alignment.columns(first)
        # logits are computed for whole segments, from the one that holds the first wanted column on
        begin = (first if columns is None else int(columns.min())) // length * length
        outputs = self.read_segments(window, with_loss=with_loss, logits_from=begin // length)
        logits = torch.cat([output.logits for output in outputs[begin // length :]], dim=1)
        if columns is None:
            logits = logits[:, first - begin : end - begin]
        else:
            logits = torch.take_along_dim(logits, (columns - begin)[..., None], dim=1)
        return torch.stack([output.loss.sum() for output in outputs]).sum(), logits

    def read_segments(self, window: Window, *, with_loss: bool, logits_from: int) -> list[Any]:
        """Read the segments of whole documents in order, each with the memories of earlier ones.

        Args:
            window: the documents, one per row, cut into segments.
            with_loss: whether to compute losses.
            logits_from: index of the first segment whose logits are computed.

        Returns:
            The output of each segment.
        """
        hmt, settings = self.hmt, self.hmt.settings
        state = MemoryState.empty(
            len(window.input_ids),
            settings.memory_tokens,
            hmt.backbone.dim,
            settings.sensory_tokens,
            dtype=self.dtype,
            device=window.input_ids.device,
        )
        number = -1

        def read_part(part: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal number
            if not arguments:
                return hmt(part)
            number += 1
            return hmt(part, *arguments, with_loss=with_loss, with_logits=number >= logits_from, **options)

        return [output for output, _ in read_window(read_part, settings, window, state)]

    def go_on(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: SegmentCache,
        logits_to_keep: int | Tensor,
    ) -> Tensor:
        """Read the tokens that follow the text in a cache, and return their logits.

        Args:
            input_ids: the new tokens, ``[batch, tokens]``.
            attention_mask: 0 on padding; ``[batch, tokens]`` for the new tokens, or with columns for all earlier tokens
                in front; None without padding.
            position_ids: must be the default ones; None for none.
            cache: what was kept of the text read before; changed in place.
            logits_to_keep: number of last positions whose logits are returned (0: all), or a tensor of positions.

        Returns:
            Logits ``[batch, tokens, vocabulary]``, or only those that ``logits_to_keep`` asks for.
        """
        before, new = cache.seen, input_ids.shape[1]
        if attention_mask is not None and attention_mask.shape == (len(input_ids), before + new):
            attention_mask = attention_mask[:, before:]
        real = check_mask(attention_mask, input_ids.shape)
        if not before:  # later ones count from the cache
            check_positions(position_ids, real, input_ids.shape)
        first = first_position(logits_to_keep, new)
        return select_logits(CachedReader(self.hmt, cache).read(input_ids, real, first), logits_to_keep)


class HMTModel(PreTrainedModel):
    """Placeholder that ``AutoModel`` finds in a converted folder: raises a ValueError that names
    ``AutoModelForCausalLM``."""

    config_class = HMTConfig

    def __init__(self, config: HMTConfig):
        raise ValueError(
            "a converted HMT has no model without a head: load it with AutoModelForCausalLM.from_pretrained"
        )
