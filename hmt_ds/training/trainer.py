"""The training loop: load batches of segments, take an optimizer step, record the results, save and evaluate when due.

Read :meth:`Trainer.train`, :meth:`Trainer.fit`, :meth:`Trainer.training_step`, in this order. The optimizer step is
:func:`hmt_ds.parallel.train_step.train_step`.
"""

import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

import torch

from hmt_ds.checkpoint import RunPosition
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Batch
from hmt_ds.distributed.process_group import broadcast_object, rank, world_size
from hmt_ds.distributed.stopping import Stopped, StopSignals
from hmt_ds.distributed.watchdog import Watchdog
from hmt_ds.parallel.protocols import StepOutput
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.reporting.history import History
from hmt_ds.reporting.log import log_seconds
from hmt_ds.training.bad_steps import BadStepCounter, read_excluded, write_excluded
from hmt_ds.training.build import build_executor, count_parameters, training_loader
from hmt_ds.training.centre_memory import centre_memory, has_new_shift
from hmt_ds.training.checkpoints import RunCheckpoints
from hmt_ds.training.curve_watch import CurveWatch
from hmt_ds.training.environment import environment
from hmt_ds.training.evaluation_in_run import EvaluationInRun, as_window
from hmt_ds.training.evaluations import evaluations
from hmt_ds.training.identity import identity
from hmt_ds.training.memory_watch import MemoryWatch
from hmt_ds.training.rank import only_start
from hmt_ds.training.run_log import RunLog, create_folder, describe_rates
from hmt_ds.training.stragglers import StragglerDetector

logger = logging.getLogger(__name__)


class Trainer:
    """A training run on one rank.

    Args:
        recipe: the checked recipe.
        prepared: data and DeepSpeed's configuration, from the preflight checks.
        device: device of the rank.
        signals: records stop signals that this process receives.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, device: torch.device, signals: StopSignals):
        self.recipe, self.prepared, self.signals = recipe, prepared, signals
        self.folder = Path(recipe.training.output)
        with log_seconds(logger, "building the model"):
            self.executor = build_executor(recipe, prepared, device)
        self.position, self.excluded = RunPosition(), list[int]()
        self.bad_steps = BadStepCounter(
            generated=recipe.data.retrieval is not None, sources=[source.documents for source in prepared.sources]
        )
        self.stragglers = StragglerDetector(self.executor, recipe.logging.slow_rank)
        self.curves, self.memory_watch = CurveWatch(), MemoryWatch(recipe, self.executor)
        self.history = History(self.folder, shown=rank() == 0)
        self.checkpoints = RunCheckpoints(recipe, identity(recipe, prepared), self.executor, self.alive, self.history)
        self.evaluations = evaluations(recipe, prepared, self.executor, self.before_evaluated_window)
        self.watchdog: Watchdog | None = None

    def train(self) -> None:
        """Train to the last step, save, evaluate, and print a summary.

        Raises:
            Stopped: if the run is told to stop, after a checkpoint was written.
            ConfigError: on all ranks, if another process trains into the folder.
            TooManyBadSteps: after too many consecutive non-finite steps, if the run may not or cannot roll back.
        """
        with only_start(self.recipe):
            self.setup()
            try:
                while not self.fit():
                    self.roll_back()
                self.finish()
            except Exception as error:
                if not isinstance(error, Stopped):
                    text = str(error).strip().partition("\n")[0]
                    self.history.write("failed", self.position.step, text=text or type(error).__name__)
                raise
            finally:
                if self.watchdog:
                    self.watchdog.end()

    def setup(self) -> None:
        """Resume from the newest checkpoint if ``checkpoint.resume`` is auto; create the run's folder, open its logs.

        Raises:
            ConfigError: on all ranks, if the folder cannot be written.
            Stopped: if a stop signal was received.
        """
        if checkpoint := self.checkpoints.find():
            self.load(checkpoint)
            logger.info("resumed from %s, step %d", checkpoint, self.position.step)
        self.signals.raise_if_received(
            self.executor.device, "stopped by a signal before the first step; nothing was saved: start the run again"
        )
        if problem := broadcast_object(create_folder(self.recipe) if rank() == 0 else None):
            raise ConfigError([str(problem)])
        parameters, trained = count_parameters(self.executor)
        logger.info("%.1fM parameters, %.1fM trained; ranks: %d", parameters / 1e6, trained / 1e6, world_size())
        logger.info(describe_rates(self.recipe, self.position.step + 1))
        self.log = RunLog(self.recipe, self.executor, parameters, trained, self.stragglers)
        self.log.open(self.position.step)
        found = environment(self.executor.device)
        self.history.write("start", self.position.step, steps=self.recipe.training.steps, environment=found)
        self.watchdog = Watchdog(self.recipe.training.hang_minutes, self.folder)

    def fit(self) -> bool:
        """Take all remaining optimizer steps of the run.

        Returns:
            True at the end of the run, False after too many consecutive steps with a non-finite loss or gradient.
        """
        for step, windows, loading_seconds in self.steps():
            if step == 1 and has_new_shift(self.recipe):
                centre_memory(self.executor, [as_window(batch) for batch in windows])
                self.alive("centring the memory")
            output = self.training_step(step, windows, loading_seconds)
            if self.bad_steps.consecutive == self.recipe.training.max_bad_steps:
                return False
            self.after_step(step, output)
        return True

    def steps(self) -> Iterator[tuple[int, list[Batch], float]]:
        """Load the data of each remaining optimizer step.

        Yields:
            The step's number from 1, this rank's batches of the step, and the seconds that loading them took.
        """
        training = self.recipe.training
        batches = iter(training_loader(self.recipe, self.prepared, self.position, self.excluded))
        for step in range(self.position.step + 1, training.steps + 1):
            started = time.perf_counter()
            if (depth := self.recipe.depths.of_stage(step)) != self.executor.budget.depth:
                self.executor.budget.plan_for(depth)
                logger.info("step %d: training.bptt_depth is %d from here on", step, depth)
            windows = list(islice(batches, training.gradient_accumulation))
            yield step, windows, time.perf_counter() - started

    def training_step(self, step: int, windows: list[Batch], loading_seconds: float) -> StepOutput:
        """Take one optimizer step, record the results, and check for non-finite numbers and stragglers.

        Args:
            step: number of the step, from 1.
            windows: this rank's batches of the step, each with the segments of one truncated-BPTT window.
            loading_seconds: seconds that loading the batches took.
        """
        self.probe_memory(step, windows[0])
        started = time.perf_counter()
        # summed over the ranks in the all-reduce of the label counts, in output.flags
        flags = (self.signals.received, self.checkpoints.written(), self.memory_watch.due())
        with self.stragglers.time_step(loading_seconds):
            output = self.executor.train_batch([as_window(batch) for batch in windows], flags)
        self.position = RunPosition(step, self.position.tokens + output.fresh_tokens, windows[-1].position)
        self.alive(f"step {step}")
        self.warn(self.stragglers.compare())
        if seconds := self.stragglers.take_rank_seconds():
            self.history.write("ranks", step, seconds=seconds)
        taken = time.perf_counter() - started
        self.log.record(output, self.position, taken)
        self.warn(self.bad_steps.count(output, windows))
        self.memory_watch.step_done(taken, output.flags[2])
        loss = output.loss if output.labels and math.isfinite(output.loss) else None
        speed = output.fresh_tokens / taken / world_size()
        for line in self.curves.step(loss, speed, self.recipe.depths.of_stage(step)):
            self.warn(line)
        return output

    def probe_memory(self, step: int, window: Batch) -> None:
        """Measure how much the memory lowers the loss on the coming batch, if all ranks agreed to; warn if it is
        ignored.

        Args:
            step: number of the coming step.
            window: this rank's rows of the coming batch.
        """
        if not self.memory_watch.asked:
            return
        values, lines = self.memory_watch.probe(as_window(window), step)
        self.history.write("probe", step, **values)
        for line in lines:
            self.warn(line)

    def after_step(self, step: int, output: StepOutput) -> None:
        """Save and evaluate if either is due after a step; stop if any rank has received a stop signal.

        Args:
            step: number of the finished step.
            output: results of the step, with stop flags summed over ranks.

        Raises:
            Stopped: after a last checkpoint was saved.
        """
        told_to_stop, written = output.flags[:2]
        if written == world_size():  # all ranks have written the background checkpoint
            self.checkpoints.finish_save()
        if told_to_stop:
            self.stop()
        if step == self.recipe.training.steps:
            return  # `finish` saves and evaluates
        if step % self.recipe.checkpoint.every == 0:
            self.checkpoints.save(self.position)
        if due := [one for one in self.evaluations if one.every and step % one.every == 0]:
            try:
                self.evaluate(step, due, in_passing=True)
            except Stopped:
                self.stop()

    def evaluate(self, step: int, due: list[EvaluationInRun], *, in_passing: bool = False) -> None:
        """Evaluate on held-out documents, generated documents or tasks, as the recipe names them, and log the figures.

        Args:
            step: optimizer step of the weights.
            due: the evaluations to run.
            in_passing: evaluate only a part, as during training, instead of everything.
        """
        started = time.perf_counter()
        for evaluation in due:
            self.log.evaluated(step, evaluation.evaluate(step, in_passing=in_passing))
        self.history.write("evaluation", step, seconds=round(time.perf_counter() - started, 3))

    def before_evaluated_window(self) -> None:
        """Report progress to the watchdog, and stop if asked to, before each batch of an evaluation is read.

        Raises:
            Stopped: on all ranks, if any rank has received a stop signal.
        """
        self.signals.raise_if_received(
            self.executor.device,
            "stopped by a signal during the evaluation; the last checkpoint is complete: run hmt-ds evaluate on it",
        )
        self.alive(f"step {self.position.step}, in its evaluation")

    def load(self, checkpoint: Path) -> None:
        """Restore the run from a checkpoint's folder, and continue after the step at which the checkpoint was saved."""
        self.excluded = read_excluded(self.folder)
        self.position = self.checkpoints.load(checkpoint)

    def roll_back(self) -> None:
        """After too many non-finite steps, return to the newest intact checkpoint, and exclude the documents that
        caused them.

        Raises:
            TooManyBadSteps: ``training.on_bad_steps`` is not rollback, or there is no checkpoint to return to.
        """
        self.checkpoints.finish_save()
        self.log.close()
        allowed = self.recipe.training.on_bad_steps == "rollback"
        checkpoint, documents = self.bad_steps.roll_back(self.checkpoints.folder, allowed=allowed)
        write_excluded(self.folder, sorted({*self.excluded, *documents}))
        self.history.write("rollback", self.position.step, text=f"to {checkpoint.name}")
        self.load(checkpoint)
        self.log.open(self.position.step)

    def finish(self) -> None:
        """Save the last checkpoint, evaluate, and print the summary of the run."""
        self.log.end_progress()
        try:
            checkpoint = self.checkpoints.last_save(self.position)
            self.evaluate(self.position.step, self.evaluations)
        finally:
            self.log.close()
        self.log.print_summary(checkpoint)
        self.history.write("end", self.position.step)

    def stop(self) -> NoReturn:
        """Save a checkpoint, and end the run because a rank has received a stop signal.

        Raises:
            Stopped: on all ranks, with a line for the user.
        """
        self.log.close()
        checkpoint = self.checkpoints.last_save(self.position)
        self.history.write("stop", self.position.step)
        raise Stopped(
            f"stopped after step {self.position.step}; checkpoint {checkpoint}; reason: a stop signal (Ctrl-C, "
            "SIGTERM, SIGUSR1 or SIGHUP); continue with the same command and --checkpoint.resume auto"
        )

    def alive(self, after: str) -> None:
        """Tell this rank's watchdog that the rank has finished the work named ``after``, such as ``step 12``."""
        if self.watchdog:
            self.watchdog.alive(after)

    def warn(self, message: str | None) -> None:
        """Log a message as a warning on rank 0, and write it to the run's history; None does nothing."""
        if message and rank() == 0:
            logger.warning("step %d: %s", self.position.step, message)
            self.history.write("warning", self.position.step, text=message)
