"""How a backbone computes: what its layers keep for the backward pass, and by which kernels."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from hmt_ds.backbones.model import BackboneError, CausalLM

# what costs matrix products to have again; all else is recomputed where checkpoints are selective
EXPENSIVE = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def layers_of(backbone: CausalLM) -> tuple[nn.Module, str]:
    """Where the decoder's layers are; see :func:`layers_in`."""
    return layers_in(backbone.model)


def layers_in(model: Any) -> tuple[nn.Module, str]:
    """In a transformers model: the module that holds the list of the decoder's layers, and the list's name.

    Raises:
        BackboneError: if there is no such list.
    """
    lists = [
        (len(child), module, name)
        for module in model.base_model.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    if not lists:
        raise BackboneError(f"{model.config.model_type}: no list of layers found")
    _, module, name = max(lists, key=lambda found: found[0])
    return module, name


def checkpoint_layers(backbone: CausalLM, *, selective: bool) -> None:
    """Let each layer keep its input alone (or, selectively, the results of its matrix products too), in training.

    transformers' own checkpoints, without reentrance: those fail under ZeRO.
    """
    arguments: dict[str, Any] = {"use_reentrant": False}
    if selective:
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, keep_expensive)
    backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def keep_expensive(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    """Which results stay."""
    return CheckpointPolicy.MUST_SAVE if operation in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE


def liger_knows(model_type: str) -> bool:
    """Whether liger-kernel is installed and has kernels for this family."""
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        return False
    return model_type in MODEL_TYPE_TO_APPLY_LIGER_FN


def use_liger(backbone: CausalLM) -> None:
    """Put liger-kernel's norms, rotary embeddings and MLPs into the model, in place; parameters stay as they are."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    # the loss is ours: it goes through the head in chunks
    _apply_liger_kernel_to_instance(model=backbone.model, cross_entropy=False, fused_linear_cross_entropy=False)


def compile_layers(backbone: CausalLM) -> None:
    """Compile the decoder's layers, one by one: all of them share one code, compiled for each shape once. And the last
    norm."""
    module, name = layers_of(backbone)
    torch._dynamo.config.cache_size_limit = max(32, torch._dynamo.config.cache_size_limit)
    norms = [child for child in module.children() if type(child).__name__.endswith("Norm")]
    for part in [*getattr(module, name), *norms]:
        part.compile(dynamic=False)
