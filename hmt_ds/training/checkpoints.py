"""The checkpoints of a run: resume from the newest one, save during training, and save the last one."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from hmt_ds.checkpoint import CheckpointError, Retention, RunPosition, Saver, load_checkpoint, newest_intact
from hmt_ds.checkpoint.files import step_number
from hmt_ds.checkpoint.restore import check_identity
from hmt_ds.checkpoint.run_state import read_run_state
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.process_group import rank
from hmt_ds.parallel.deepspeed_config.lr_schedule import DEEPSPEED_SCHEDULES, make_scheduler, rates
from hmt_ds.parallel.protocols import Executor
from hmt_ds.reporting.history import History
from hmt_ds.reporting.log import log_seconds

logger = logging.getLogger(__name__)

JUMP = 0.1  # change of the learning rate on resuming, as a share of the rate before, from which on it is refused


class RunCheckpoints:
    """Saves and loads the checkpoints of one run. All ranks call each method at the same step.

    Args:
        recipe: the checked recipe.
        identity: settings that a checkpoint must have in common with the run, by recipe key.
        executor: the model with its optimizer.
        alive: called after each written part of a checkpoint, to tell the watchdog that this rank makes progress.
        history: the run's history, to which an event is added for each checkpoint.
    """

    def __init__(
        self,
        recipe: Recipe,
        identity: dict[str, object],
        executor: Executor,
        alive: Callable[[str], None],
        history: History,
    ):
        options, self.history = recipe.checkpoint, history
        self.recipe, self.executor, self.identity = recipe, executor, identity
        self.folder = Path(recipe.training.output) / "checkpoints"
        keeping = Retention(options.keep, options.milestones)
        self.saver = Saver(self.folder, identity, keeping, background=options.background, alive=alive)
        self.newest: Path | None = None  # known to be intact: this process has loaded or written it
        self.save_started = 0.0

    def find(self) -> Path | None:
        """Return the folder of the checkpoint to resume from; None to begin a new run.

        Raises:
            CheckpointError: another run wrote the checkpoint, or the learning rate would jump.
        """
        if self.recipe.checkpoint.resume == "never":
            return None
        checkpoint = newest_intact(self.folder, logger.warning)
        if checkpoint:
            check_identity(checkpoint, self.identity)
            check_rate_jump(checkpoint, self.recipe)
        return checkpoint

    def load(self, checkpoint: Path) -> RunPosition:
        """Restore weights, optimizer, learning rate schedule, memories and random states from a checkpoint.

        Args:
            checkpoint: folder of the checkpoint.

        Returns:
            How far the saved run had come: its step, and its position in the data.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit the model.
        """
        with log_seconds(logger, f"loading {checkpoint.name}"):
            position = load_checkpoint(self.executor, checkpoint)
        self.newest = checkpoint
        return position

    def written(self) -> int:
        """Return 1 if this rank has finished writing its share of a checkpoint that is not complete yet, else 0."""
        return self.saver.written()

    def save(self, position: RunPosition) -> None:
        """Save a checkpoint; if that fails, log a warning and keep earlier ones. All ranks call it at the same step.

        Args:
            position: how far the run has come: its step, and its position in the data.
        """
        self.finish_save()
        self.begin(position)
        if not self.saver.background:
            self.finish_save()

    def begin(self, position: RunPosition) -> None:
        """Start to write a checkpoint: in a thread if ``checkpoint.background`` is set, else during this call.

        Args:
            position: how far the run has come: its step, and its position in the data.
        """
        self.save_started = time.perf_counter()
        self.saver.begin(self.executor, position)

    def finish_save(self) -> None:
        """Wait until the checkpoint that is being written is complete on all ranks, and make it visible; only warn on
        errors.

        Does nothing if no checkpoint is being written.
        """
        try:
            self.complete()
        except CheckpointError as error:
            if rank() == 0:
                logger.warning(str(error))

    def complete(self) -> None:
        """Wait until the checkpoint that is being written is complete on all ranks, and make it visible.

        Does nothing if no checkpoint is being written.

        Raises:
            CheckpointError: on all ranks, if the checkpoint could not be written.
        """
        if checkpoint := self.saver.finish():
            self.newest = checkpoint
            seconds = time.perf_counter() - self.save_started
            logger.info("saving %s: %.1f s", checkpoint.name, seconds)
            self.history.write("checkpoint", step_number(checkpoint), seconds=round(seconds, 3))

    def last_save(self, position: RunPosition) -> Path:
        """Save the checkpoint at the end of a run, unless its step is saved already; return the checkpoint's folder.

        Args:
            position: how far the run has come: its step, and its position in the data.

        Raises:
            CheckpointError: if the checkpoint cannot be written.
        """
        self.finish_save()
        if self.newest is None or step_number(self.newest) != position.step:  # writing it again would put it at risk
            self.begin(position)
            self.complete()
        assert self.newest is not None
        return self.newest


def check_rate_jump(checkpoint: Path, recipe: Recipe) -> None:
    """Refuse to resume if a changed ``training.steps`` makes the learning rate jump.

    Args:
        checkpoint: folder of the checkpoint to resume from.
        recipe: recipe of the resumed run.

    Raises:
        CheckpointError: the rate would jump; the message has both learning rates.
    """
    saved, schedule, steps = read_run_state(checkpoint), recipe.schedule, recipe.training.steps
    planned = saved["identity"].get("training.steps")  # a checkpoint of an earlier version does not tell
    if recipe.checkpoint.rate_jump or not isinstance(planned, int) or planned == steps:
        return
    if schedule.name not in DEEPSPEED_SCHEDULES:  # torch's have no arguments that follow from training.steps
        return
    step = saved["step"] + 1
    shares = [rates(make_scheduler(schedule.name, schedule.params, n), [step])[0] for n in (planned, steps)]
    if abs(shares[1] - shares[0]) > JUMP * shares[0]:
        before, after = (recipe.optimizer.lr * share for share in shares)
        raise CheckpointError(
            f"training.steps is {planned} in {checkpoint}, {steps} here, with which the schedule's learning rate jumps "
            f"from {before:.3g} to {after:.3g} at step {step}: keep the old value, or --checkpoint.rate_jump true"
        )
