"""Resuming from a checkpoint of any layout: each rank reads the parts that it holds now."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from safetensors import safe_open
from torch import Tensor

from hmt_ds.checkpoint.files import CheckpointError, find_damage, list_checkpoints, read_manifest
from hmt_ds.checkpoint.fragments import WEIGHT, create_states, fragments, restore_scalars
from hmt_ds.checkpoint.rank_state import rank_file, read_memories, read_random_states
from hmt_ds.checkpoint.run_state import EngineState, RunPosition, RunState, read_run_state
from hmt_ds.distributed.deepspeed_internals import full_shape, refresh_weights, set_counters, set_loss_scaler_state
from hmt_ds.distributed.engine import Engine
from hmt_ds.distributed.process_group import all_gather_object, broadcast_object, rank, world_size
from hmt_ds.memory import HMT
from hmt_ds.parallel.pipeline.build_stage import STAND_IN
from hmt_ds.parallel.protocols import Executor, Reader

# entries of a learning-rate schedule's state that its steps change; the others are its arguments
CHANGED_BY_STEPS = {
    *("last_batch_iteration", "last_epoch", "_step_count", "_last_lr", "T_cur", "T_i", "_is_initial"),
    "_get_lr_called_within_step",
}


class LrSchedule(Protocol):
    """A learning-rate schedule of DeepSpeed's or of torch's."""

    def state_dict(self) -> dict[str, object]: ...
    def load_state_dict(self, state_dict: dict[str, object]) -> object: ...
    def step(self, step: int) -> object: ...


def newest_intact(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint without any damage, the same on all ranks.

    Args:
        folder: of all checkpoints.
        say: called with a line for each damaged checkpoint that is skipped.
    """
    found: Path | None = None
    if rank() == 0:
        for checkpoint in list_checkpoints(folder):
            problems = find_damage(checkpoint)
            if not problems:
                found = checkpoint
                break
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            say(f"{checkpoint} is damaged and was skipped: {problems[0]}{more}")
    return cast(Path | None, broadcast_object(found))


def load_weights(reader: Reader, checkpoint: Path) -> RunPosition:
    """Restore a model's trained weights for evaluation, and return how far the run had come.

    Raises:
        CheckpointError: if it does not fit the model; with both values.
    """
    saved = read_run_state(checkpoint)
    FragmentReader(checkpoint).fill(reader, states=False)
    refresh_weights(reader.engine)
    return RunPosition(saved["step"], saved["tokens"], saved["position"])


def load_checkpoint(executor: Executor, checkpoint: Path) -> RunPosition:
    """Restore an executor's weights, optimizer, memories and random states from a checkpoint.

    The number of ranks may differ from the saved one if the global batch has as many rows: then each rank takes the
    memories of its rows, and random states are left as they are.

    Args:
        executor: whose model, optimizer and memories are set.
        checkpoint: its folder.

    Raises:
        CheckpointError: if it does not fit the executor; with both values.
    """
    saved = read_run_state(checkpoint)
    FragmentReader(checkpoint).fill(executor, states=True)
    refresh_weights(executor.engine)
    restore_engine(executor.engine, saved)
    restore_rank(executor, checkpoint, saved)
    return RunPosition(saved["step"], saved["tokens"], saved["position"])


def check_identity(checkpoint: Path, here: dict[str, object]) -> None:
    """Check that a run continues the run that wrote a checkpoint.

    Args:
        checkpoint: its folder.
        here: what both must have in common, by the recipe's keys.

    Raises:
        CheckpointError: naming every key that differs, with both values.
    """
    there = read_run_state(checkpoint)["identity"]
    keys = sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key))
    if keys:
        cure = "use the first value, or start a new run"
        lines = [f"{key} is {there.get(key)!r} in {checkpoint}, {here.get(key)!r} here: {cure}" for key in keys]
        raise CheckpointError("\n".join(lines))


class FragmentReader:
    """Reads ranges of weights and optimizer states from whichever files of a checkpoint hold parts of them."""

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

    def fill(self, reader: Reader, *, states: bool) -> None:
        """Read this rank's part of all weights and optimizer states into the model's own tensors."""
        engine = reader.engine
        if states:
            create_states(engine)
        own = list(fragments(engine, rank=reader.data_rank, world_size=reader.data_ranks, to_write=False))
        own = [fragment for fragment in own if fragment.name != STAND_IN]
        self.check(trained_weights(reader), states, {key for fragment in own for key in fragment.tensors})
        for fragment in own:
            for key, tensor in fragment.tensors.items():
                if key == WEIGHT or states:
                    self.read(key, fragment.name, fragment.start, tensor)

    def check(self, trained: dict[str, list[int]], states: bool, keys: set[str]) -> None:
        """Check that trained weights, their shapes and the optimizer's states match the checkpoint."""
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

    def read(self, key: str, name: str, start: int, into: Tensor) -> None:
        """Read a range of a flattened weight, or of one of its optimizer states.

        Args:
            key: ``weight``, or the state's name.
            name: the weight's.
            start: of the range.
            into: flat, as long as the range.
        """
        end, done = start + into.numel(), 0
        for first, numel, file in self.parts[name]:
            # the overlap of the stored part with the range
            begin, stop = max(start, first), min(end, first + numel)
            if begin < stop:
                with safe_open(self.checkpoint / file, framework="pt") as saved:
                    part = saved.get_slice(f"{key}/{name}@{first}")[begin - first : stop - first]
                into[begin - start : stop - start].copy_(part)
                done += stop - begin
        if done != into.numel():
            raise CheckpointError(
                f"{self.checkpoint} is incomplete: {done} of {into.numel()} elements of {key} of {name}"
            )


def trained_weights(reader: Reader) -> dict[str, list[int]]:
    """Return the shapes of all trained weights, over all pipeline stages."""
    own = {
        name: list(full_shape(p))
        for name, p in reader.engine.module.named_parameters()
        if p.requires_grad and name != STAND_IN
    }
    every = all_gather_object(own) if reader.stages > 1 else [own]
    return {name: shape for stage in every for name, shape in stage.items()}


def restore_engine(engine: Engine[HMT], saved: EngineState) -> None:
    """Restore the optimizer's scalars, the learning-rate schedule, the loss scale and the counters."""
    restore_scalars(engine, saved["optimizer"])
    if engine.lr_scheduler and saved["schedule"] is not None:
        restore_lr_schedule(engine.lr_scheduler, saved["schedule"])
    set_loss_scaler_state(engine, saved["loss_scaler"])
    set_counters(engine, saved["counters"])


def restore_lr_schedule(schedule: LrSchedule, saved: dict[str, object]) -> None:
    """Continue a learning-rate schedule where it was saved; its arguments must be the saved ones.

    For torch's schedules the base learning rate must be the same too, because they compute from the last rate.

    Raises:
        CheckpointError: naming what differs, with both values.
    """
    here = json.loads(json.dumps(schedule.state_dict()))  # like the saved one: JSON turns all keys into texts
    for key in sorted((here.keys() | saved.keys()) - CHANGED_BY_STEPS):
        if here.get(key) != saved.get(key):
            there = f"{key} is {saved.get(key)} in the checkpoint, {here.get(key)} here"
            raise CheckpointError(f"schedule: {there}: use the first value, or start a new run")
    schedule.load_state_dict(schedule.state_dict() | {key: saved[key] for key in CHANGED_BY_STEPS & saved.keys()})
    last = saved.get("last_batch_iteration", -1)
    if isinstance(last, int) and last >= 0:
        # DeepSpeed's schedules: the optimizer still has the checkpoint's rate, which this recomputes from the recipe's
        schedule.step(last)


def restore_rank(executor: Executor, checkpoint: Path, saved: RunState) -> None:
    """Restore carried memories, and random states if the layout is the same."""
    rows = saved["rows_per_rank"] * (saved["world_size"] // saved["stages"])
    here, left = divmod(rows, executor.data_ranks)
    if left:
        raise CheckpointError(f"{checkpoint} has {rows} rows, which {executor.data_ranks} ranks cannot share")
    own = range(executor.data_rank * here, (executor.data_rank + 1) * here)
    executor.state = read_memories(checkpoint, own, saved["rows_per_rank"], executor.device, executor.dtype)
    # a generator's state belongs to one rank's work: with another layout there is none to continue
    if (saved["world_size"], saved["stages"]) == (world_size(), executor.stages):
        read_random_states(checkpoint / rank_file(rank()), executor.device)
