"""Resume from a checkpoint with any number of ranks, stages or ZeRO stage: each rank reads the ranges that it holds."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Protocol, cast

from safetensors import safe_open
from torch import Tensor

from hmt_ds.checkpoint.files import CURE, CheckpointError, find_damage, list_checkpoints, read_manifest
from hmt_ds.checkpoint.fragments import WEIGHT, create_states, fragments, restore_scalars
from hmt_ds.checkpoint.rank_state import rank_file, read_memories, read_random_states
from hmt_ds.checkpoint.run_state import EngineState, RunPosition, RunState, read_run_state
from hmt_ds.distributed.deepspeed_internals import full_shape, refresh_weights, set_counters, set_loss_scaler_state
from hmt_ds.distributed.engine import Engine
from hmt_ds.distributed.process_group import all_gather_object, broadcast_object, rank, world_size
from hmt_ds.memory import HMT, MemorySettings
from hmt_ds.parallel.pipeline.build_stage import STAND_IN
from hmt_ds.parallel.protocols import Executor, Reader

MAY_DIFFER = {"training.steps", "memory.recall_loss"}  # of a checkpoint's identity
# the values of memory settings that an older checkpoint does not name, because they did not exist yet
# settings that an older checkpoint does not name, and that had any value
NEW = ("data.train, hash of the lengths in order", "data.train, hash of the chat templates", "data.pack")
DEFAULTS = {f"memory.{field.name}": field.default for field in fields(MemorySettings) if field.default is not MISSING}
# entries of a learning-rate schedule's state that its steps change; the others are its arguments
CHANGED_BY_STEPS = {
    *("last_batch_iteration", "last_epoch", "_step_count", "_last_lr", "T_cur", "T_i", "_is_initial"),
    "_get_lr_called_within_step",
}


class LrSchedule(Protocol):
    """The methods of a learning rate schedule, DeepSpeed's or torch's, that resuming needs (a typing Protocol)."""

    def state_dict(self) -> dict[str, object]: ...
    def load_state_dict(self, state_dict: dict[str, object]) -> object: ...
    def step(self, step: int) -> object: ...


def newest_intact(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged checkpoint, the same on all ranks; None if there is none. All ranks must call it.

    Args:
        folder: folder of all checkpoints of a run.
        say: called on rank 0 with a line for each damaged checkpoint that is skipped.
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


def require_intact(checkpoint: Path) -> Path:
    """Return a checkpoint's path, if it has no damage. All ranks must call it; rank 0 reads the files.

    Raises:
        CheckpointError: on all ranks, naming the first damaged file.
    """
    if problems := cast(list[str], broadcast_object(find_damage(checkpoint) if rank() == 0 else [])):
        raise CheckpointError(f"{checkpoint} is damaged: {problems[0]}{CURE}")
    return checkpoint


def load_weights(reader: Reader, checkpoint: Path) -> RunPosition:
    """Load a model's trained weights from a checkpoint, for evaluation.

    Args:
        reader: the model in an engine without an optimizer.
        checkpoint: folder of the checkpoint.

    Returns:
        The step and position in the data at which the checkpoint was saved.

    Raises:
        CheckpointError: if the checkpoint does not fit the model, with both values.
    """
    saved = read_run_state(checkpoint)
    FragmentReader(checkpoint).fill(reader, states=False)
    refresh_weights(reader.engine)
    return RunPosition(saved["step"], saved["tokens"], saved["position"])


def load_checkpoint(executor: Executor, checkpoint: Path) -> RunPosition:
    """Restore weights, optimizer, carried memories and random states of a training run from a checkpoint.

    The number of ranks may differ from the saved one if the global batch has as many rows: then each rank takes the
    memories of its rows, and random states are not restored.

    Args:
        executor: the model in its engine, changed in place.
        checkpoint: folder of the checkpoint.

    Returns:
        The step and position in the data at which the checkpoint was saved.

    Raises:
        CheckpointError: if the checkpoint does not fit the recipe or the ranks, with both values.
    """
    saved = read_run_state(checkpoint)
    FragmentReader(checkpoint).fill(executor, states=True)
    refresh_weights(executor.engine)
    restore_engine(executor.engine, saved)
    restore_rank(executor, checkpoint, saved)
    return RunPosition(saved["step"], saved["tokens"], saved["position"])


def check_identity(checkpoint: Path, here: dict[str, object]) -> None:
    """Check that a checkpoint was written by the run that is to be resumed, or by one with equal essential settings.

    Args:
        checkpoint: folder of the checkpoint.
        here: the settings that must be equal, by recipe key.

    Raises:
        CheckpointError: naming every key that differs, with both values.
    """
    there = DEFAULTS | {key: here.get(key) for key in NEW} | read_run_state(checkpoint)["identity"]
    keys = sorted(key for key in (here.keys() | there.keys()) - MAY_DIFFER if here.get(key) != there.get(key))
    if keys:
        cure = "use the checkpoint's value, or start a new run"
        lines = [f"{key} is {there.get(key)!r} in {checkpoint}, {here.get(key)!r} here: {cure}" for key in keys]
        raise CheckpointError("\n".join(lines))


class FragmentReader:
    """Reads ranges of weights and optimizer states from a checkpoint, whose files each hold parts of them.

    Args:
        checkpoint: folder of the checkpoint.
    """

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
        """Read this rank's part of all trained weights, and optionally of optimizer states, into the model's tensors.

        Args:
            reader: the model in an engine.
            states: whether to read optimizer states as well.

        Raises:
            CheckpointError: if weights or states of the model and the checkpoint differ in name or shape.
        """
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
        """Check that a model's trained weights, their shapes and the optimizer's states are those of the checkpoint.

        Args:
            trained: shapes of the model's trained weights, by name.
            states: whether optimizer states are to be read.
            keys: names of the optimizer's elementwise states, such as ``exp_avg``.

        Raises:
            CheckpointError: with the first three differences.
        """
        problems = [f"{name} is missing in the checkpoint" for name in trained.keys() - self.shapes.keys()]
        problems += [
            f"{name} is trained in the checkpoint, but not by the recipe"
            for name in self.shapes.keys() - trained.keys()
        ]
        for name in trained.keys() & self.shapes.keys():
            if trained[name] != self.shapes[name]:
                problems.append(
                    f"{name} has the shape {self.shapes[name]} in the checkpoint, {trained[name]} by the recipe"
                )
        if states and keys and keys != self.keys:
            problems.append(
                f"the optimizer's states are {sorted(self.keys)} in the checkpoint, {sorted(keys)} by the recipe"
            )
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            said = "; ".join(sorted(problems)[:3])
            cure = "set the model, memory and optimizer that it was trained with, or start a new run"
            raise CheckpointError(f"{self.checkpoint} does not fit the recipe: {said}{more}: {cure}")

    def read(self, key: str, name: str, start: int, into: Tensor) -> None:
        """Read a range of a flattened weight, or of one of its optimizer states, from the checkpoint's files.

        Args:
            key: ``weight``, or the name of an optimizer state, such as ``exp_avg``.
            name: name of the weight in the model.
            start: index in the flattened weight at which the range starts.
            into: flat tensor ``[elements of the range]`` to fill.

        Raises:
            CheckpointError: if the checkpoint lacks a part of the range.
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
                f"{self.checkpoint} is incomplete: it has {done} of {into.numel()} elements of {key} of {name}: "
                "use another checkpoint"
            )


def trained_weights(reader: Reader) -> dict[str, list[int]]:
    """Return the shapes of all trained weights by name, over all pipeline stages. All ranks must call it."""
    own = {
        name: list(full_shape(p))
        for name, p in reader.engine.module.named_parameters()
        if p.requires_grad and name != STAND_IN
    }
    every = all_gather_object(own) if reader.stages > 1 else [own]
    return {name: shape for stage in every for name, shape in stage.items()}


def restore_engine(engine: Engine[HMT], saved: EngineState) -> None:
    """Restore an engine's optimizer settings, learning rate schedule, loss scale and step counters.

    Args:
        engine: DeepSpeed's engine, changed in place.
        saved: the engine's state in a checkpoint's ``progress.json``.

    Raises:
        CheckpointError: an argument of the learning rate schedule differs; the message has both values.
    """
    restore_scalars(engine, saved["optimizer"])
    if engine.lr_scheduler and saved["schedule"] is not None:
        restore_lr_schedule(engine.lr_scheduler, saved["schedule"])
    set_loss_scaler_state(engine, saved["loss_scaler"])
    set_counters(engine, saved["counters"])


def restore_lr_schedule(schedule: LrSchedule, saved: dict[str, object]) -> None:
    """Continue a learning rate schedule from its saved state; its arguments must be equal to the saved ones.

    torch's schedules also need the saved base learning rate, because they compute each rate from the previous one.

    Args:
        schedule: the schedule as built from the recipe, changed in place.
        saved: the schedule's ``state_dict`` from a checkpoint.

    Raises:
        CheckpointError: naming the argument that differs, with both values.
    """
    here = json.loads(json.dumps(schedule.state_dict()))  # like the saved one: JSON turns all keys into texts
    for key in sorted((here.keys() | saved.keys()) - CHANGED_BY_STEPS):
        if here.get(key) != saved.get(key):
            values = f"{saved.get(key)} in the checkpoint, {here.get(key)} by the recipe"
            raise CheckpointError(f"schedule: {key} is {values}: use the checkpoint's value, or start a new run")
    schedule.load_state_dict(schedule.state_dict() | {key: saved[key] for key in CHANGED_BY_STEPS & saved.keys()})
    last = saved.get("last_batch_iteration", -1)
    if isinstance(last, int) and last >= 0:
        # DeepSpeed's schedules: the optimizer still has the checkpoint's rate, which this recomputes from the recipe's
        schedule.step(last)


def restore_rank(executor: Executor, checkpoint: Path, saved: RunState) -> None:
    """Restore a rank's carried memories, and its random states if the numbers of ranks and stages are the saved ones.

    Args:
        executor: the model in its engine, changed in place.
        checkpoint: folder of the checkpoint.
        saved: content of the checkpoint's ``progress.json``.

    Raises:
        CheckpointError: the rows of the global batch cannot be divided among the ranks.
    """
    rows = saved["rows_per_rank"] * (saved["world_size"] // saved["stages"])
    here, left = divmod(rows, executor.data_ranks)
    if left:
        raise CheckpointError(
            f"{checkpoint} has {rows} rows, which {executor.data_ranks} data-parallel ranks cannot share equally: "
            f"resume on a number of ranks that divides {rows}"
        )
    own = range(executor.data_rank * here, (executor.data_rank + 1) * here)
    executor.state = read_memories(checkpoint, own, saved["rows_per_rank"], executor.device, executor.dtype)
    # a generator's state belongs to one rank's work: with another layout there is none to continue
    if (saved["world_size"], saved["stages"]) == (world_size(), executor.stages):
        read_random_states(checkpoint / rank_file(rank()), executor.device)
