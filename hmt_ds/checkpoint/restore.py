"""Going on from a checkpoint, in whatever layout: each rank reads the parts that are its own now."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hmt_ds.checkpoint.files import CheckpointError, damage, list_checkpoints, read_manifest
from hmt_ds.checkpoint.fragments import WEIGHT, ensure_states, fragments, set_scalars
from hmt_ds.checkpoint.rank_state import rank_file, read_memories, read_random_states
from hmt_ds.checkpoint.save import RunPosition
from hmt_ds.distributed.deepspeed_internals import (
    full_shape,
    refresh_weights,
    set_counters,
    set_loss_scaler_state,
)
from hmt_ds.distributed.engine import Engine
from hmt_ds.distributed.process_group import from_all_ranks, from_rank_0, rank, world_size
from hmt_ds.memory import HMT
from hmt_ds.parallel.pipeline.build_stage import STAND_IN
from hmt_ds.parallel.zero import ZeroExecutor

# what steps change in a schedule of DeepSpeed's or torch's
MOVING = {"last_batch_iteration", "last_epoch", "_step_count", "_last_lr", "T_cur", "T_i", "_is_initial"}
MOVING.add("_get_lr_called_within_step")


def newest_intact(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of which every file is as it was written; the same on all ranks.

    Args:
        say: told of each that is passed over, and why.
    """
    found: Path | None = None
    if rank() == 0:
        for checkpoint in list_checkpoints(folder):
            problems = damage(checkpoint)
            if not problems:
                found = checkpoint
                break
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            say(f"{checkpoint} is damaged and passed over: {problems[0]}{more}")
    return from_rank_0(found)  # type: ignore[return-value]


def load_checkpoint(executor: ZeroExecutor, checkpoint: Path, *, weights_only: bool = False) -> RunPosition:
    """Put an executor where the saved one was.

    With another number of ranks the rows of the global batch must be as many as before: then each rank takes the
    memories of its rows. Random states are taken up by as many ranks only.

    Args:
        weights_only: weights alone, to evaluate.

    Raises:
        CheckpointError: if it does not fit the executor; with both values.
    """
    saved = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    Parts(checkpoint).fill(executor, states=not weights_only)
    refresh_weights(executor.engine)
    if not weights_only:
        restore_engine(executor.engine, saved)
        restore_rank(executor, checkpoint, saved)
    return RunPosition(saved["step"], saved["tokens"], saved["position"])


def check_identity(checkpoint: Path, here: dict[str, Any]) -> None:
    """Is the run the one that wrote the checkpoint?

    Args:
        here: what they must have in common, by the recipe's keys.

    Raises:
        CheckpointError: naming every key that differs, with both values.
    """
    there = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))["identity"]
    keys = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if keys:
        cure = "go on with the first, or begin a new run"
        lines = [f"{key} is {there.get(key)!r} in {checkpoint}, {here.get(key)!r} here: {cure}" for key in keys]
        raise CheckpointError("\n".join(lines))


class Parts:
    """Which file has which part of which weight."""

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.parts: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        self.shapes: dict[str, list[int]] = {}
        self.keys: set[str] = set()
        for file, entry in read_manifest(checkpoint).items():
            for name, start, numel, keys, shape in entry.get("fragments", ()):
                self.parts[name].append((start, numel, file))
                self.shapes[name] = shape
                self.keys.update(keys)

    def fill(self, executor: ZeroExecutor, *, states: bool) -> None:
        """Put weights, and the optimizer's states, into this rank's own tensors."""
        engine = executor.engine
        if states:
            ensure_states(engine)
        own = list(fragments(engine, rank=executor.data_rank, world_size=executor.data_ranks, to_write=False))
        own = [fragment for fragment in own if fragment.name != STAND_IN]
        self.check(trained_by(executor), states, {key for fragment in own for key in fragment.tensors})
        for fragment in own:
            for key, tensor in fragment.tensors.items():
                if key == WEIGHT or states:
                    self.read(key, fragment.name, fragment.start, tensor)

    def check(self, trained: dict[str, list[int]], states: bool, keys: set[str]) -> None:
        """Are these the same weights, of the same shapes, and the same optimizer's states?"""
        problems = [f"{name} is not in it" for name in trained.keys() - self.shapes.keys()]
        problems += [f"{name} is not trained here" for name in self.shapes.keys() - trained.keys()]
        for name in trained.keys() & self.shapes.keys():
            if trained[name] != self.shapes[name]:
                problems.append(f"{name} has the shape {self.shapes[name]} in it, {trained[name]} here")
        if states and keys and keys != self.keys:
            problems.append(f"the optimizer's states are {sorted(self.keys)} in it, {sorted(keys)} here")
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise CheckpointError(f"{self.checkpoint} does not fit: {'; '.join(sorted(problems)[:3])}{more}")

    def read(self, key: str, name: str, start: int, into: torch.Tensor) -> None:
        """Read a range of a flattened weight, or of a state of it."""
        end, done = start + into.numel(), 0
        for first, numel, file in self.parts[name]:
            begin, stop = max(start, first), min(end, first + numel)
            if begin < stop:
                with safe_open(self.checkpoint / file, framework="pt") as saved:
                    part = saved.get_slice(f"{key}/{name}@{first}")[begin - first : stop - first]
                into[begin - start : stop - start].copy_(part)
                done += stop - begin
        if done != into.numel():
            raise CheckpointError(f"{self.checkpoint}: {done} of {into.numel()} numbers of {key} of {name} are in it")


def trained_by(executor: ZeroExecutor) -> dict[str, list[int]]:
    """The shapes of all weights that are trained, on whichever stage."""
    own = {
        name: list(full_shape(p))
        for name, p in executor.engine.module.named_parameters()
        if p.requires_grad and name != STAND_IN
    }
    every = from_all_ranks(own) if executor.stages > 1 else [own]
    return {name: shape for stage in every for name, shape in stage.items()}


def restore_engine(engine: Engine[HMT], saved: dict[str, Any]) -> None:
    """Schedule, loss scale and counters."""
    set_scalars(engine, saved["optimizer"])
    if engine.lr_scheduler and saved["schedule"] is not None:
        restore_schedule(engine.lr_scheduler, saved["schedule"])
    set_loss_scaler_state(engine, saved["loss_scaler"])
    set_counters(engine, saved["counters"])


def restore_schedule(schedule: Any, saved: dict[str, Any]) -> None:
    """Let it be where it was. Its arguments are the recipe's. Torch's schedules go on from the last rate: for them the
    rate to begin with must be the same too.

    Raises:
        CheckpointError: naming what differs, with both values.
    """
    here = json.loads(json.dumps(schedule.state_dict()))  # as it was saved: JSON's keys are texts
    for key in sorted((here.keys() | saved.keys()) - MOVING):
        if here.get(key) != saved.get(key):
            there = f"{key} is {saved.get(key)} in the checkpoint, {here.get(key)} here"
            raise CheckpointError(f"schedule: {there}: go on with the first, or begin a new run")
    schedule.load_state_dict(schedule.state_dict() | {key: saved[key] for key in MOVING & saved.keys()})
    if saved.get("last_batch_iteration", -1) >= 0:  # DeepSpeed's: the optimizer still has the rate of the checkpoint
        schedule.step(saved["last_batch_iteration"])


def restore_rank(executor: ZeroExecutor, checkpoint: Path, saved: dict[str, Any]) -> None:
    """Carried memories, and random states where the number of ranks is the same."""
    rows = saved["rows_per_rank"] * (saved["world_size"] // saved["stages"])
    here, left = divmod(rows, executor.data_ranks)
    if left:
        raise CheckpointError(f"{checkpoint} has {rows} rows, which {executor.data_ranks} ranks cannot share")
    own = range(executor.data_rank * here, (executor.data_rank + 1) * here)
    executor.state = read_memories(checkpoint, own, saved["rows_per_rank"], executor.device, executor.dtype)
    if (saved["world_size"], saved["stages"]) == (world_size(), executor.stages):
        read_random_states(checkpoint / rank_file(rank()), executor.device)
