"""The checkpoints of a run: resume from the newest one, save on the way, and end with one."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from hmt_ds.checkpoint import CheckpointError, Retention, RunPosition, Saver, load_checkpoint, newest_intact
from hmt_ds.checkpoint.files import step_number
from hmt_ds.checkpoint.restore import check_identity
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.process_group import rank
from hmt_ds.parallel.protocols import Executor
from hmt_ds.reporting.log import log_seconds

logger = logging.getLogger(__name__)


class RunCheckpoints:
    """Saves and loads the checkpoints of one run. All ranks call each method at the same step.

    Args:
        recipe: checked.
        identity: what a checkpoint must have in common with the run; see :func:`hmt_ds.training.build.identity`.
        executor: the model and its optimizer.
        alive: called for each part of a checkpoint that is written.
    """

    def __init__(self, recipe: Recipe, identity: dict[str, object], executor: Executor, alive: Callable[[str], None]):
        options = recipe.checkpoint
        self.executor, self.resume, self.identity = executor, options.resume, identity
        self.folder = Path(recipe.training.output) / "checkpoints"
        keeping = Retention(options.keep, options.milestones)
        self.saver = Saver(self.folder, identity, keeping, background=options.background, alive=alive)
        self.newest: Path | None = None  # known to be intact: this process has loaded or written it
        self.save_started = 0.0

    def find(self) -> Path | None:
        """The checkpoint to resume from, if the recipe wants it and there is one.

        Raises:
            CheckpointError: if it was written by another run.
        """
        if self.resume == "never":
            return None
        checkpoint = newest_intact(self.folder, logger.warning)
        if checkpoint:
            check_identity(checkpoint, self.identity)
        return checkpoint

    def load(self, checkpoint: Path) -> RunPosition:
        """Restore weights, optimizer, schedule, memories and random states; returns where the run was."""
        with log_seconds(logger, f"loading {checkpoint.name}"):
            position = load_checkpoint(self.executor, checkpoint)
        self.newest = checkpoint
        return position

    def written(self) -> int:
        """1 if a checkpoint was begun, and this rank has written its part of it; else 0."""
        return self.saver.written()

    def save(self, position: RunPosition) -> None:
        """Write a checkpoint. If it cannot be written, the earlier ones stay and the run goes on."""
        self.finish_save()
        self.begin(position)
        if not self.saver.background:
            self.finish_save()

    def begin(self, position: RunPosition) -> None:
        """Start to write a checkpoint."""
        self.save_started = time.perf_counter()
        self.saver.begin(self.executor, position)

    def finish_save(self) -> None:
        """Wait for a checkpoint that is being written, if there is one, and make it visible."""
        try:
            self.complete()
        except CheckpointError as error:
            if rank() == 0:
                logger.warning(str(error))

    def complete(self) -> None:
        """Wait for a checkpoint that is being written, make it visible, and raise if it could not be written.

        Raises:
            CheckpointError: on all ranks.
        """
        if checkpoint := self.saver.finish():
            self.newest = checkpoint
            logger.info("saving %s: %.1f s", checkpoint.name, time.perf_counter() - self.save_started)

    def last_save(self, position: RunPosition) -> Path:
        """The checkpoint that a run ends with, which must not be missing.

        Raises:
            CheckpointError: if it cannot be written.
        """
        self.finish_save()
        if self.newest is None or step_number(self.newest) != position.step:  # writing it again would put it at risk
            self.begin(position)
            self.complete()
        assert self.newest is not None
        return self.newest
