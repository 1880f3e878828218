"""What a recipe is made into on a rank: the model in its engine, the windows, and what a checkpoint must agree with."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hmt_ds.data import WindowLoader, document_lengths
from hmt_ds.parallel.build import build_hmt
from hmt_ds.parallel.distributed import rank, world_size
from hmt_ds.parallel.schedule import make_scheduler
from hmt_ds.parallel.settle import ComputeSettings, number_of
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.prepare import Prepared
from hmt_ds.recipe import Recipe


def build_executor(recipe: Recipe, prepared: Prepared, device: torch.device) -> ZeroExecutor:
    """The recipe's model in DeepSpeed's engine, on this rank's device."""
    model = recipe.model
    hmt = build_hmt(
        model.source,
        recipe.memory.model_dump(),
        ds_config=prepared.ds_config,
        precision=model.precision,
        train=model.train,
        lora=prepared.lora,
        seed=recipe.training.seed,
        device=device,
        trust_remote_code=model.trust_remote_code,
    )
    return ZeroExecutor(
        hmt,
        ds_config=prepared.ds_config,
        precision=model.precision,
        device=device,
        depth=recipe.training.bptt_depth,
        compute=ComputeSettings(**recipe.compute.model_dump()),
        memory_lr=recipe.optimizer.memory_lr,
        scheduler=make_scheduler(recipe.schedule.name, recipe.schedule.params, recipe.training.steps),
    )


def training_loader(recipe: Recipe, prepared: Prepared, position: dict[str, Any] | None = None) -> WindowLoader:
    """This rank's rows of the training documents, from a position on."""
    training = recipe.training
    return WindowLoader(
        prepared.train,
        segments=training.bptt_depth,
        segment_length=recipe.memory.segment_length,
        seed=training.seed,
        rank=rank(),
        world_size=world_size(),
        batch_size=training.batch_size,
        num_workers=recipe.data.workers,
        state=position,
    )


def sizes_of(model: nn.Module) -> tuple[int, int]:
    """How many parameters a model has, sharded or not, and how many of them are trained."""
    sizes = [(number_of(p), p.requires_grad) for p in model.parameters()]
    return sum(number for number, _ in sizes), sum(number for number, trained in sizes if trained)


def identity(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What a run has in common with its checkpoints, by the recipe's keys."""
    model = recipe.model
    found = {
        "model.source": model.source if isinstance(model.source, dict) else Path(model.source).name,
        "model.train": model.train,
        "model.tokenizer": prepared.tokenizer,
        "training.seed": recipe.training.seed,
        "training.batch_size x ranks": recipe.training.batch_size * world_size(),
        "optimizer.name": recipe.optimizer.name,
    }
    found |= {f"memory.{key}": value for key, value in recipe.memory.model_dump().items()}
    if model.train == "lora":
        found |= {f"model.lora.{key}": value for key, value in model.lora.model_dump().items()}
    if prepared.train is not None:
        lengths = document_lengths(prepared.train)
        found["data.train"] = f"{len(lengths):,} documents, {int(lengths.sum()):,} tokens"
    return found
