"""A checkpoint: DeepSpeed's own files, and beside them what a recurrence needs to go on exactly where it was.

checkpoints/
    latest                    name of the newest whole checkpoint, written last
    step_000500/
        progress.json         step, position in the data, layout
        rank_00000.pt         carried memories and random states of each rank
        ...                   DeepSpeed's files
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmt_ds.memory import MemoryState
from hmt_ds.parallel.distributed import barrier, rank, world_size
from hmt_ds.parallel.zero import ZeroExecutor


class CheckpointError(ValueError):
    """A checkpoint that cannot be used here."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        tokens: fresh tokens read by all ranks.
        position: the data plan's state after the last window (None at the very start).
    """

    step: int = 0
    tokens: int = 0
    position: dict[str, Any] | None = None


def save_checkpoint(executor: ZeroExecutor, folder: Path, progress: Progress) -> Path:
    """Write a checkpoint, unless it is the newest already; every rank must call. Returns its path."""
    target = folder / f"step_{progress.step:06d}"
    if latest_checkpoint(folder) == target:
        return target
    target.mkdir(parents=True, exist_ok=True)
    torch.save(rank_state(executor), target / f"rank_{rank():05d}.pt")
    if rank() == 0:
        layout = {"world_size": world_size(), "zero_stage": executor.engine.zero_optimization_stage()}
        (target / "progress.json").write_text(json.dumps(asdict(progress) | layout, indent=1))
    # DeepSpeed writes `latest` after all ranks are done; frozen weights are where the model came from
    executor.engine.save_checkpoint(str(folder), tag=target.name, exclude_frozen_parameters=True)
    barrier()
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    try:
        return folder / (folder / "latest").read_text().strip()
    except FileNotFoundError:
        return None


def load_checkpoint(executor: ZeroExecutor, checkpoint: Path, *, weights_only: bool = False) -> Progress:
    """Put an executor where the saved one was.

    Args:
        weights_only: leave schedule, memories and random states as they are, to evaluate. The optimizer is read all
            the same: at stage 3 the weights are its shards, and DeepSpeed's other way puts them together on each rank.

    Raises:
        CheckpointError: if it was written by another number of ranks or another ZeRO stage.
    """
    saved = json.loads((checkpoint / "progress.json").read_text())
    here = {"world_size": world_size(), "zero_stage": executor.engine.zero_optimization_stage()}
    for key, value in here.items():
        if (was := saved.pop(key)) != value:
            raise CheckpointError(f"{checkpoint} was written with {key} {was}, here it is {value}: go on with {was}")
    executor.engine.load_checkpoint(
        str(checkpoint.parent),
        tag=checkpoint.name,
        load_module_strict=False,
        load_lr_scheduler_states=not weights_only,
    )
    if not weights_only:
        state = torch.load(checkpoint / f"rank_{rank():05d}.pt", map_location="cpu", weights_only=True)
        restore_rank_state(executor, state)
    return Progress(**saved)


def rank_state(executor: ZeroExecutor) -> dict[str, Any]:
    """What differs between ranks: the carried memory of their rows, and random states."""
    memory = executor.state
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "memory": None if memory is None else {k: v.cpu() for k, v in vars(memory).items()},
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }
    if executor.device.type != "cpu":
        state["accelerator"] = torch.get_device_module(executor.device).get_rng_state(executor.device)
    return state


def restore_rank_state(executor: ZeroExecutor, state: dict[str, Any]) -> None:
    """The inverse of :func:`rank_state`."""
    if state["memory"] is not None:
        executor.state = MemoryState(**{k: v.to(executor.device) for k, v in state["memory"].items()})
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "accelerator" in state:
        torch.get_device_module(executor.device).set_rng_state(state["accelerator"], executor.device)
