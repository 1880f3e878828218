"""A Hierarchical Memory Transformer as a transformers model: a document of any length goes in, segment by segment.

This file and those that it imports are copied into every folder that ``hmt-ds convert`` writes; there they need torch
and transformers alone.

Shapes: b batch, t tokens of the documents, v vocabulary.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from hmt_ds.backbones.model import CausalLM
from hmt_ds.backbones.transformers_internals import set_tied_weights, tied_weights
from hmt_ds.evaluation.generation import generate
from hmt_ds.memory.bptt import read_window
from hmt_ds.memory.cell import HMT
from hmt_ds.memory.segments import IGNORED, split_document
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.memory.state import MemoryState


class HMTConfig(PretrainedConfig):
    """The backbone's configuration, and the sizes of the memory around it.

    Args:
        backbone: a configuration with ``model_type``.
        memory: the fields of ``MemorySettings``.
    """

    model_type = "hmt"

    def __init__(self, backbone: Any = None, memory: dict[str, Any] | None = None, **options: Any):
        if isinstance(backbone, dict):
            values = dict(backbone)
            backbone = AutoConfig.for_model(values.pop("model_type"), **values)
        self.backbone = backbone
        self.memory = memory or {}
        super().__init__(**options)

    def get_text_config(self, *arguments: Any, **options: Any) -> Any:
        """Where transformers looks for the vocabulary and the like."""
        return self.backbone or self


class HMTForCausalLM(PreTrainedModel, GenerationMixin):
    """Reads documents of any length, and continues them."""

    config_class = HMTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: HMTConfig):
        super().__init__(config)
        model = AutoModelForCausalLM.from_config(config.backbone, dtype=torch.get_default_dtype())
        self.hmt = HMT(CausalLM(model), MemorySettings(**config.memory))
        # transformers asks the children for these: they are the backbone's, under longer names
        tied = {f"backbone.model.{k}": f"backbone.model.{v}" for k, v in tied_weights(model).items()}
        set_tied_weights(self.hmt, tied)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The backbone's."""
        return self.hmt.backbone.model.get_input_embeddings()  # type: ignore[attr-defined]

    def get_output_embeddings(self) -> Any:
        """The backbone's."""
        return self.hmt.backbone.model.get_output_embeddings()  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutput:
        """Read documents.

        Args:
            input_ids: ``[b, t]``.
            attention_mask: ``[b, t]``, 0 on pads.
            labels: ``[b, t]``, usually the same as ``input_ids``; they are shifted here. -100 counts nothing.
            logits_to_keep: give the logits of so many of the last tokens; 0 for all, ``[b, t, v]``.

        Returns:
            Mean cross-entropy over the labels, if there are any, and the logits.
        """
        settings, tokens = self.hmt.settings, input_ids.shape[1]
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()
        window = split_document(input_ids, settings.segment_length, mask)
        if labels is not None:
            window = replace(window, labels=split_document(labels, settings.segment_length).labels)
        first = tokens - logits_to_keep if logits_to_keep else 0
        outputs = self.read(window, labels is not None, first // settings.segment_length)
        logits = torch.cat([output.logits for output in outputs if output.logits is not None], dim=1)
        begin = first // settings.segment_length * settings.segment_length
        logits = logits[:, first - begin : tokens - begin]
        if labels is None:
            return CausalLMOutput(logits=logits)
        counted = (window.labels != IGNORED).sum().clamp(min=1)
        return CausalLMOutput(loss=torch.stack([o.loss.sum() for o in outputs]).sum() / counted, logits=logits)

    def read(self, window: Any, with_loss: bool, logits_from: int) -> list[Any]:
        """All segments' outputs; logits from the one with that number on."""
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

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int | None = None, **options: Any) -> Tensor:
        """Continue documents of equal length.

        Args:
            input_ids: ``[b, t]``.
            max_new_tokens: how many tokens to add at most.
            options: for the backbone's ``generate``, such as ``do_sample``; greedy by default.

        Returns:
            The documents with what was added, ``[b, t + at most max_new_tokens]``.
        """
        mask = options.pop("attention_mask", None)
        if mask is not None and not bool(mask.all()):
            raise ValueError("generate reads documents of equal length: pads are not taken")
        self.hmt.backbone.model.generation_config = self.generation_config  # type: ignore[attr-defined]
        wanted = max_new_tokens or getattr(self.generation_config, "max_new_tokens", None) or 20
        return torch.cat([input_ids, generate(self.hmt, input_ids, wanted, **options)], dim=1)
