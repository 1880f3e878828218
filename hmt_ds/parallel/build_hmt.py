"""Building a model so that no rank need hold it whole, and handing it to DeepSpeed."""

from contextlib import nullcontext
from typing import Any, cast

import deepspeed
import torch
from torch import nn

from hmt_ds.backbones import CausalLM, LoraSettings, build_model, fill_memory, read_converted, select_trainable
from hmt_ds.backbones.transformers_internals import build_under_zero_init
from hmt_ds.memory import HMT, MemorySettings
from hmt_ds.parallel.deepspeed_config.fill import computes_in_autocast, stage_of

MEMORY_SEED = 0x484D54  # the memory modules start from the same numbers on every rank


def build_hmt(
    source: str | dict[str, Any],
    memory: MemorySettings,
    *,
    ds_config: dict[str, Any],
    precision: str = "fp32",
    train: str = "whole",
    lora: LoraSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> HMT:
    """Build the backbone and the memory around it, inside ``zero.Init`` at stage 3.

    Args:
        source: folder, hub name, or configuration for random weights.
        ds_config: filled; its stage says how to build.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        train: ``whole``, ``frozen`` or ``lora``.
        seed: of all random weights.
        device: where random weights of a backbone are made.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if computes_in_autocast(ds_config, precision):
        dtype = torch.float32
    with build_under_zero_init(ds_config) if stage_of(ds_config) == 3 else nullcontext():
        backbone = build_model(source, dtype=dtype, seed=seed, device=device, trust_remote_code=trust_remote_code)
    torch.manual_seed(seed ^ MEMORY_SEED)
    select_trainable(backbone, train, lora, seed)
    model = HMT(backbone, memory)
    initialise_prompts(model)
    if read_converted(source):
        fill_memory(model, str(source))
    for name, child in model.named_children():
        if name != "backbone":  # that has its type already, and buffers that must keep theirs
            child.to(dtype)
    return model


def initialise_prompts(model: HMT) -> None:
    """Give the prompts the spread of the backbone's token embeddings, as the reference does."""
    embedding = cast(CausalLM, model.backbone).model.get_input_embeddings()
    with torch.no_grad(), deepspeed.zero.GatheredParameters(list(embedding.parameters())):
        some = torch.arange(0, len(embedding.weight), 7, device=embedding.weight.device)
        spread = float(embedding(some).float().std())
    for name in ("initial_prompt", "summary_prompt"):
        if hasattr(model, name):
            nn.init.normal_(getattr(model, name).embeddings.weight, std=spread)


def parameter_groups(model: HMT, memory_lr: float | None) -> list[dict[str, Any]]:
    """The trained parameters: the backbone's, and the memory modules' with their own learning rate."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    memory = {"params": [p for name, p in trained if not name.startswith("backbone.")]}
    if memory_lr is not None:
        memory["lr"] = memory_lr  # type: ignore[assignment]
    groups = [{"params": [p for name, p in trained if name.startswith("backbone.")]}, memory]
    return [group for group in groups if group["params"]]
