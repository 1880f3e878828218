"""Store frozen weights of a backbone in 4 bits (QLoRA), with bitsandbytes."""

from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hmt_ds.backbones.model import CausalLM
from hmt_ds.backbones.probe import small_model
from hmt_ds.backbones.settings import LoraSettings


def quantize_linear(backbone: CausalLM, kind: str, compute: torch.dtype, device: torch.device | str) -> None:
    """Replace a backbone's linear layers by layers with weights in 4 bits, in place; the output head stays as it is.

    Adapters that are added afterwards are those of peft for such layers. A layer's weights are unpacked in each pass.

    Args:
        backbone: the backbone, whose linear layers will not be trained.
        kind: ``nf4`` or ``fp4``.
        compute: dtype of the unpacked weights and of the matrix products.
        device: device to pack the weights on, and to keep them on.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in linear_layers(backbone.model):
        owner, _, child = name.rpartition(".")
        old = backbone.model.get_submodule(name)
        assert isinstance(old, nn.Linear)
        with torch.device("meta"):
            new = Linear4bit(
                old.in_features, old.out_features, old.bias is not None, compute_dtype=compute, quant_type=kind
            )
        new.weight = Params4bit(old.weight.data, requires_grad=False, quant_type=kind, module=new).to(device)
        new.bias = old.bias
        # or the first pass without gradients on a CPU packs the weights in another way, which has no backward pass
        new.support_avx512bf16_for_cpu = False
        setattr(backbone.model.get_submodule(owner), child, new)
    backbone.model.is_loaded_in_4bit = True  # which peft asks for


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of a model's linear layers, without the output head's, whose weight the embedding may share."""
    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head]


def is_quantized(backbone: CausalLM) -> bool:
    """Return whether :func:`quantize_linear` has changed a backbone."""
    return getattr(backbone.model, "is_loaded_in_4bit", False)


def quantize_problems(
    config: PreTrainedConfig, lora: LoraSettings, *, train: str, stage: int, stages: int
) -> list[str]:
    """Return an error line for each reason why a backbone's weights cannot be stored as ``model.lora.quantize`` says.

    Args:
        config: the model's configuration.
        lora: settings of the adapters.
        train: the recipe's ``model.train``.
        stage: ZeRO stage, 0 to 3.
        stages: number of pipeline stages; 1 without a pipeline.
    """
    if lora.quantize == "none":
        return []
    key, problems = f"model.lora.quantize is {lora.quantize}", []
    if train != "lora":
        problems.append(f"{key}, but weights in 4 bits cannot be trained, and model.train is {train}: take lora")
    if not find_spec("bitsandbytes"):
        problems.append(f"{key}, but bitsandbytes is not installed: pip install bitsandbytes, or take none")
    if stage == 3:
        problems.append(f"{key}, but ZeRO-3 cannot shard packed weights: take ds_configs/zero2.json, or none")
    if stages > 1:
        problems.append(f"{key}, but pipeline.stages is {stages}: take 1, or none")
    with torch.device("meta"):
        small = small_model(config)
    if not linear_layers(small):
        problems.append(f"{key}, but {config.model_type} has no layers of the class torch.nn.Linear: take none")
    return problems
