"""Load a folder written by ``hmt-ds convert`` as an :class:`HMT`, without running the Python code in it."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from hmt_ds.backbones import BackboneError, build_model, fill_memory, read_converted
from hmt_ds.backbones.converted import backbone_config
from hmt_ds.backbones.hashes import check_hashes
from hmt_ds.backbones.model import first_line
from hmt_ds.backbones.model_config import check_values
from hmt_ds.config.config_error import describe
from hmt_ds.config.recipe import Memory
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.memory import HMT, MemorySettings
from hmt_ds.memory.segments import Segment, Summary

logger = logging.getLogger(__name__)


class PretrainedHMT(HMT):
    """An HMT that can also be called with token ids of any length, like the transformers model of its folder."""

    def forward(self, part: Any = None, *arguments: Any, **options: Any) -> Any:
        """Read whole documents if called with token ids, or one segment if called as ``HMT.forward`` is.

        Args:
            part: token ids ``[batch, tokens]``, which can also be given as ``input_ids``; or a segment.
            arguments, options: those of ``HMTForCausalLM.forward``, such as ``attention_mask`` and ``labels``.

        Returns:
            For token ids, transformers' ``CausalLMOutputWithPast``: ``logits`` ``[batch, tokens, vocabulary]``, and
            ``loss`` if there are labels.

        Raises:
            TypeError: ``part`` is not a tensor of whole numbers.
            ValueError: the ids have another shape or are outside the vocabulary, or an option is unusable.
        """
        if isinstance(part, Segment | Summary):
            return super().forward(part, *arguments, **options)
        ids = options.pop("input_ids", part)
        check_token_ids(ids, self.causal_lm.config.vocab_size)
        return self.causal_lm(ids, *arguments, **options)

    @cached_property  # not an attribute that torch registers: it holds this module, and shares its weights
    def causal_lm(self) -> HMTForCausalLM:
        """This model as a transformers model (``HMTForCausalLM``), with ``generate``."""
        return HMTForCausalLM.around(self)


def check_token_ids(ids: object, vocabulary: int) -> None:
    """Check that what a model was called with are token ids: a tensor of whole numbers within the vocabulary.

    Args:
        ids: what the model was called with.
        vocabulary: number of token ids.

    Raises:
        TypeError: ``ids`` is not a tensor of whole numbers.
        ValueError: an id is not in the vocabulary.
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        kind = f"a tensor of {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        how = 'tokenizer(text, return_tensors="pt").input_ids'
        raise TypeError(f"the model reads token ids, a tensor of whole numbers [batch, tokens] like {how}; got {kind}")
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        found = f"from {int(ids.min())} to {int(ids.max())}"
        raise ValueError(f"token ids must be from 0 to {vocabulary - 1}, got some {found}: use the folder's tokenizer")


def load_pretrained(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PretrainedHMT:
    """Load a converted model in evaluation mode; call it with token ids, or generate text with its attribute
    ``causal_lm``.

    Args:
        folder: a folder that ``hmt-ds convert`` has written, or its name on the hub.
        dtype: dtype of the weights.
        device: device that the model is moved to.

    Raises:
        BackboneError: the folder was not written by ``hmt-ds convert``, is damaged, or lacks weights.
    """
    converted = read_converted(str(folder))
    if converted is None:
        raise BackboneError(
            f"{folder} was not written by hmt-ds convert: name a folder that was, or load it with transformers"
        )
    settings = read_settings(converted.get("memory"), folder)
    for line in check_hashes(str(folder)):
        logger.warning(line)
    try:
        check_values(backbone_config(converted), f"{folder} has a config.json that is damaged: ")
        model = PretrainedHMT(build_model(str(folder), dtype=dtype), settings)
        filled = set(fill_memory(model, str(folder)))
    except BackboneError:
        raise
    except Exception as error:  # models raise all kinds for a configuration that they cannot use
        what = "weights that are damaged" if isinstance(error, SafetensorError) else "a model that cannot be loaded"
        raise BackboneError(f"{folder} has {what} ({first_line(error)}): copy or download it again") from None
    wanted = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    if missing := sorted(wanted - filled):
        raise BackboneError(f"{folder} lacks the weight {missing[0]}: copy or download it again")
    for name, child in model.named_children():
        if name != "backbone":  # loaded in its dtype already, with buffers that must keep float32
            child.to(dtype)
    return model.to(device).eval()


def read_settings(values: object, folder: str | Path) -> MemorySettings:
    """Return the memory's settings from their values in config.json, checked like those of a recipe.

    Args:
        values: the values by key, as JSON has them.
        folder: the folder, for error messages.

    Raises:
        BackboneError: if a setting is unknown, missing or wrong.
    """
    try:
        settings: MemorySettings = TypeAdapter(Memory).validate_python(values)
        if settings.sensory_tokens > settings.segment_length:
            wrong = f"memory.sensory_tokens {settings.sensory_tokens} above segment_length {settings.segment_length}"
        elif settings.last_memories > 1 and settings.interface != "adapted":
            wrong = f"memory.last_memories {settings.last_memories} without interface adapted"
        else:
            return settings
    except ValidationError as error:
        wrong = "; ".join(f"memory.{line}" for line in describe(error, Memory))  # type: ignore[arg-type]
    raise BackboneError(f"{folder} has a config.json that is damaged ({wrong}): copy or download it again")
