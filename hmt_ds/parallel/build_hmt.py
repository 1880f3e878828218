"""Build an HMT model; at ZeRO-3 its weights are sharded as they are created, so that no rank ever holds all of them."""

from contextlib import nullcontext
from typing import cast

import deepspeed
import torch
from torch import nn
from transformers import PretrainedConfig

from hmt_ds.backbones import (
    CausalLM,
    LoraSettings,
    build_model,
    fill_memory,
    quantize_linear,
    read_converted,
    select_trainable,
)
from hmt_ds.backbones.transformers_internals import build_under_zero_init
from hmt_ds.memory import HMT, MemorySettings
from hmt_ds.parallel.deepspeed_config.fill import DsConfig, computes_in_autocast, stage_of

MEMORY_SEED = 0x484D54  # of the memory modules; the same on every rank


def build_hmt(
    source: str | dict[str, object],
    memory: MemorySettings,
    *,
    ds_config: DsConfig,
    precision: str = "fp32",
    train: str = "whole",
    lora: LoraSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> HMT:
    """Build a backbone and the memory modules around it; at ZeRO-3 their weights are sharded as they are created.

    Args:
        source: a folder, a hub name, or a transformers configuration for random weights.
        memory: settings of the memory.
        ds_config: DeepSpeed's configuration, every ``auto`` filled in.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        train: which weights of the backbone are trained: ``whole``, ``frozen`` or ``lora``.
        lora: LoRA settings; required if ``train`` is ``lora``.
        seed: seed of all random weights.
        device: device on which the backbone's random weights are created.
        trust_remote_code: whether Python code of the folder or the hub model may run.

    Raises:
        BackboneError: the model's files lack a weight, or hold one of another shape.
    """
    computed = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    dtype = torch.float32 if computes_in_autocast(ds_config, precision) else computed
    with build_under_zero_init(ds_config) if stage_of(ds_config) == 3 else nullcontext():
        backbone = build_model(source, dtype=dtype, seed=seed, device=device, trust_remote_code=trust_remote_code)
    if train == "lora" and lora and lora.quantize != "none":
        quantize_linear(backbone, lora.quantize, computed, device)
    torch.manual_seed(seed ^ MEMORY_SEED)
    select_trainable(backbone, train, lora, seed)
    model = HMT(backbone, memory)
    initialise_prompts(model)
    if read_converted(source):
        fill_memory(model, str(source))
    for name, child in model.named_children():
        if name != "backbone":  # the backbone has its type already, and fp32 buffers that must stay so
            child.to(dtype)
    return model


def initialise_prompts(model: HMT) -> None:
    """Initialise the trained embeddings of a model's memory (prompts, write tokens, sink) from its token embeddings.

    With ``memory.interface: paper`` the prompts have the standard deviation of token embeddings, as in HMT-pytorch.
    With ``adapted`` all embeddings start near the mean token, where a pretrained backbone works best: write embeddings
    spread like tokens, memories half as much, and the sink is the token that begins a text.

    Args:
        model: the model, changed in place.
    """
    backbone = cast(CausalLM, model.backbone)
    embedding, first = backbone.model.get_input_embeddings(), first_token(backbone.config.get_text_config())
    with torch.no_grad(), deepspeed.zero.GatheredParameters(list(embedding.parameters())):
        # through forward, because Gemma scales its embeddings there
        ids = torch.arange(0, len(embedding.weight), 7, device=embedding.weight.device)
        sample = embedding(ids).float()
        sink = embedding(torch.as_tensor([first], device=ids.device)).float()
    std, mean = float(sample.std()), sample.mean(dim=0)
    if model.settings.interface == "paper":
        for name in ("initial_prompt", "summary_prompt"):
            if hasattr(model, name):
                nn.init.normal_(getattr(model, name).embeddings.weight, std=std)
        return
    with torch.no_grad():
        model.sink.embeddings.weight.copy_(sink)
        if model.settings.mode != "backbone":
            for name, spread in (("initial_prompt", 0.15), ("write_prompt", 0.7), ("summary_prompt", 0.7)):
                if hasattr(model, name):
                    weight = getattr(model, name).embeddings.weight
                    weight.copy_(mean.cpu() + torch.randn(weight.shape) * spread * std)
            model.memory_embedding.shift.copy_(mean)
            model.memory_embedding.scale.fill_(0.5 * float(sample.square().mean().sqrt()))


def first_token(config: PretrainedConfig) -> int:
    """Return the id of the token that begins a text (BOS), else the one that ends it (EOS), else 0.

    An id outside the vocabulary is skipped: configurations for random weights keep the default ids of their family,
    which may exceed a smaller vocabulary.
    """
    named = [getattr(config, name, None) for name in ("bos_token_id", "eos_token_id")]
    ids = [i for one in named for i in (one if isinstance(one, list) else [one])]
    return next((i for i in ids if i is not None and 0 <= i < config.vocab_size), 0)


def parameter_groups(model: HMT, memory_lr: float | None) -> list[dict[str, object]]:
    """Return parameter groups for torch's optimizers: the backbone's trained parameters, and those of the memory
    modules.

    Args:
        model: the model.
        memory_lr: learning rate of the memory modules; None for the backbone's.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    memory: dict[str, object] = {"params": [p for name, p in trained if not name.startswith("backbone.")]}
    if memory_lr is not None:
        memory["lr"] = memory_lr
    groups: list[dict[str, object]] = [{"params": [p for name, p in trained if name.startswith("backbone.")]}, memory]
    return [group for group in groups if group["params"]]
