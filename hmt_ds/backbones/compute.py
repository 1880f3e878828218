"""Activation checkpointing, liger kernels and torch.compile for the decoder layers of a backbone."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from hmt_ds.backbones.model import BackboneError, CausalLM

# Operations whose results selective activation checkpointing keeps: matrix products are expensive to recompute.
EXPENSIVE = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def decoder_layers(backbone: CausalLM) -> tuple[nn.Module, str]:
    """Return the module of a backbone that holds the list of decoder layers, and the list's name in that module."""
    return find_layers(backbone.model)


def find_layers(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """Return the module of a transformers model that holds the list of decoder layers, and the list's attribute name.

    Raises:
        BackboneError: if the model has no ``nn.ModuleList``.
    """
    lists = [
        (len(child), module, name)
        for module in model.base_model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    if not lists:
        raise BackboneError(
            f"{model.config.model_type}: the model has no nn.ModuleList of decoder layers: choose another model"
        )
    # experts and the like are lists too, and shorter
    _, module, name = max(lists, key=lambda found: found[0])
    return module, name


def checkpoint_layers(backbone: CausalLM, *, selective: bool) -> None:
    """Turn on activation checkpointing of every decoder layer, for training.

    Args:
        backbone: the backbone, changed in place.
        selective: keep the results of matrix products and attention besides each layer's input, and recompute the rest;
            if False, keep only each layer's input.
    """
    arguments: dict[str, object] = {"use_reentrant": False}  # reentrant checkpoints fail under ZeRO
    if selective:
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, keep_expensive)
    backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def keep_expensive(context: object, operation: object, *arguments: object, **options: object) -> CheckpointPolicy:
    """Decide for one operation under selective checkpointing: keep results of matrix products and attention, recompute
    others.

    Args:
        context: torch's checkpoint context; unused.
        operation: the torch operation about to run, such as ``aten.mm.default``.
        arguments, options: arguments of the operation; unused.
    """
    return CheckpointPolicy.MUST_SAVE if operation in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE


def liger_knows(model_type: str) -> bool:
    """Return whether liger-kernel is installed and has kernels for a model type.

    Args:
        model_type: the configuration's ``model_type``, such as ``llama``.
    """
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        return False
    return model_type in MODEL_TYPE_TO_APPLY_LIGER_FN


def use_liger(backbone: CausalLM) -> None:
    """Replace a backbone's norms, rotary embeddings and MLPs with liger-kernel's, in place; its weights stay the same.

    Args:
        backbone: the backbone.
    """
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    # not liger's loss: ours applies the head in chunks
    _apply_liger_kernel_to_instance(model=backbone.model, cross_entropy=False, fused_linear_cross_entropy=False)


def compile_layers(backbone: CausalLM) -> None:
    """Compile a backbone's decoder layers and final norm with ``torch.compile``.

    Layers are compiled one by one: they share one code object, so each input shape is compiled once for all layers.

    Args:
        backbone: the backbone, changed in place.
    """
    module, name = decoder_layers(backbone)
    torch._dynamo.config.cache_size_limit = max(32, torch._dynamo.config.cache_size_limit)
    norms = [child for child in module.children() if type(child).__name__.endswith("Norm")]
    for part in [*getattr(module, name), *norms]:
        part.compile(dynamic=False)
