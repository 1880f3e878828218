"""Choose which weights of a backbone are trained: all, none, or LoRA adapters."""

import zlib

import torch
from torch import nn

from hmt_ds.backbones.model import CausalLM
from hmt_ds.backbones.settings import LoraSettings


def select_trainable(backbone: CausalLM, train: str, lora: LoraSettings | None = None, seed: int = 0) -> None:
    """Freeze the weights of a backbone that are not to be trained, in place; for LoRA also add the adapters.

    Args:
        backbone: the backbone.
        train: ``whole`` (train all weights), ``frozen`` (none), or ``lora`` (only the adapters).
        lora: settings of the adapters; None for the defaults.
        seed: seed of the adapters' random weights.
    """
    if train == "whole":
        return
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    if train == "lora":
        add_adapters(backbone.model, lora or LoraSettings(), seed)


def add_adapters(model: nn.Module, lora: LoraSettings, seed: int = 0) -> None:
    """Add LoRA adapters to a model, in place; names and structure of its other modules do not change.

    Each adapter's random weights are seeded by its name, so that a pipeline stage draws the same ones as the whole
    model.

    Args:
        model: the transformers model.
        lora: settings of the adapters.
        seed: seed of the adapters' random weights.

    Raises:
        ValueError: if the model has no layer named in ``lora.target_modules``.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    inject_adapter_in_model(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        ),
        model,
    )
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            torch.manual_seed(seed ^ zlib.crc32(name.encode()))
            for adapter in module.lora_A:
                module.reset_lora_parameters(adapter, init_lora_weights=True)
