"""Resume from a checkpoint with any number of ranks and any ZeRO stage: each rank reads the ranges that it holds."""

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Protocol, cast

from hmt_ds.checkpoint.files import CURE, CheckpointError, find_damage, list_checkpoints
from hmt_ds.checkpoint.fragment_reader import FragmentReader
from hmt_ds.checkpoint.fragments import restore_scalars
from hmt_ds.checkpoint.rank_state import rank_file, read_memories, read_random_states
from hmt_ds.checkpoint.run_state import EngineState, RunPosition, RunState, read_run_state
from hmt_ds.distributed.deepspeed_internals import refresh_weights, set_counters, set_loss_scaler_state
from hmt_ds.distributed.engine import Engine
from hmt_ds.distributed.process_group import broadcast_object, rank, world_size
from hmt_ds.memory import HMT, MemorySettings
from hmt_ds.parallel.protocols import Executor, Reader

MAY_DIFFER = {"training.steps", "memory.recall_loss"}  # of a checkpoint's identity
# settings that an older checkpoint does not name, and that had any value
NEW = ("data.train, hash of the lengths in order", "data.train, hash of the chat templates", "data.pack")
# the values of memory settings that an older checkpoint does not name, because they did not exist yet
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
    """Return a checkpoint's path, after checking that no file is damaged. All ranks must call it; rank 0 reads the
    files.

    Args:
        checkpoint: folder of the checkpoint.

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
    """Restore weights, optimizer, memories of the documents being read, and random states from a checkpoint.

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
        here: the settings of the present run that must be equal, by recipe key.

    Raises:
        CheckpointError: naming every key that differs, with both values.
    """
    there = DEFAULTS | {key: here.get(key) for key in NEW} | read_run_state(checkpoint)["identity"]
    keys = sorted(key for key in (here.keys() | there.keys()) - MAY_DIFFER if here.get(key) != there.get(key))
    if keys:
        cure = "use the checkpoint's value, or start a new run"
        lines = [f"{key} is {there.get(key)!r} in {checkpoint}, {here.get(key)!r} here: {cure}" for key in keys]
        raise CheckpointError("\n".join(lines))


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
    """Restore the memories that a rank carries between steps, and its random states.

    Random states are restored only if the numbers of ranks and pipeline stages are the saved ones.

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
