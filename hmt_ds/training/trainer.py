"""The loop: next windows, one step, metrics, checkpoint."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch

from hmt_ds.checkpoint import CheckpointError, Retention, RunPosition, Saver, load_checkpoint, newest_intact
from hmt_ds.checkpoint.files import step_of
from hmt_ds.checkpoint.restore import check_identity
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import write_yaml
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Batch
from hmt_ds.distributed.deepspeed_internals import skipped_steps
from hmt_ds.distributed.process_group import from_rank_0, rank, world_size
from hmt_ds.distributed.stopping import Stopped, StopSignals
from hmt_ds.distributed.watchdog import Watchdog
from hmt_ds.parallel.zero import StepOutput
from hmt_ds.planning.flops import peak_flops, useful_flops_per_token
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.reporting.metrics import Metrics, read_metrics
from hmt_ds.reporting.plots import plot_loss
from hmt_ds.reporting.progress import ProgressBar
from hmt_ds.training.bad_steps import BadStepCounter, read_left_out, write_left_out
from hmt_ds.training.build import build_executor, identity, sizes_of, training_loader
from hmt_ds.training.rank import resident_bytes, say
from hmt_ds.training.stragglers import RankTimes
from hmt_ds.training.validation import Validation, as_window, warning


class Trainer:
    """A training run on this rank.

    Args:
        recipe: checked.
        prepared: what the checks have read: data, DeepSpeed's configuration.
        device: this rank's.
        signals: that tell it to stop.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, device: torch.device, signals: StopSignals):
        self.recipe, self.prepared, self.signals = recipe, prepared, signals
        self.folder = Path(recipe.training.output)
        self.executor = build_executor(recipe, prepared, device)
        self.parameters, self.trained = sizes_of(self.executor)
        self.position = RunPosition()
        self.intact: tuple[Path, int] | None = None
        self.rank_times = RankTimes(self.executor, recipe.logging.slow_rank)
        self.bad_steps, self.left_out = BadStepCounter(), list[int]()
        keep = recipe.checkpoint
        self.saver = Saver(
            self.folder / "checkpoints",
            identity(recipe, prepared),
            Retention(keep.keep, keep.milestones),
            background=keep.background,
            alive=self.alive,
        )
        self.held_out = Validation(recipe, prepared, self.executor, self.before_window)
        self.watchdog: Watchdog | None = None

    def train(self) -> None:
        """Train to the end; save, evaluate, and say what came of it.

        Raises:
            Stopped: if told to stop on the way, with all saved.
            BadSteps: if too many steps in a row were not finite, and there is no going back.
        """
        self.resume()
        self.signals.raise_if_told(self.executor.device, "stopped before the first step; nothing was to be saved")
        self.begin_run()
        self.watchdog = Watchdog(self.recipe.training.hang_minutes)
        while not self.take_steps():
            self.go_back()
        self.finish()
        self.watchdog.end()

    def alive(self, after: str) -> None:
        """A sign of life to the watchdog, while training."""
        if self.watchdog:
            self.watchdog.alive(after)

    def take_steps(self) -> bool:
        """All steps to the end; or False, after too many bad ones in a row."""
        for step, windows, loading in self.steps():
            started = time.perf_counter()
            flags = (self.signals.told, self.saver.written())
            with self.rank_times.of_a_step(loading):
                output = self.executor.train_batch([as_window(b) for b in windows], flags)
            self.position = RunPosition(step, self.position.tokens + output.fresh_tokens, windows[-1].position)
            self.alive(f"step {step}")
            self.say_of_step(self.rank_times.look())
            self.report(output, time.perf_counter() - started)
            self.say_of_step(self.bad_steps.count(output, windows))
            if self.bad_steps.in_a_row == self.recipe.training.max_bad_steps:
                return False
            stop, written = output.flags
            if written == world_size():
                self.end_save()
            if stop:
                self.stop_early()
            if step % self.recipe.checkpoint.every == 0 and step < self.recipe.training.steps:
                self.save()
            if self.recipe.evaluation.every and step % self.recipe.evaluation.every == 0:
                try:
                    self.held_out.evaluate(step)
                except Stopped:
                    self.stop_early()
        return True

    def steps(self) -> Iterator[tuple[int, list[Batch], float]]:
        """The remaining steps, each with its windows and the seconds that these took to load."""
        training = self.recipe.training
        batches = iter(training_loader(self.recipe, self.prepared, self.position.position, self.left_out))
        for step in range(self.position.step + 1, training.steps + 1):
            started = time.perf_counter()
            windows = list(islice(batches, training.gradient_accumulation))
            yield step, windows, time.perf_counter() - started

    def before_window(self) -> None:
        """Between two windows of an evaluation."""
        self.signals.raise_if_told(self.executor.device, "stopped in the evaluation; the checkpoint is whole")
        self.alive(f"step {self.position.step}, in its evaluation")

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if the recipe says so and there is one."""
        if self.recipe.checkpoint.resume == "never":
            return
        checkpoint = newest_intact(self.saver.folder, say)
        if checkpoint:
            check_identity(checkpoint, self.saver.identity)
            self.load(checkpoint)
            say(f"resumed from {checkpoint}, step {self.position.step}")

    def load(self, checkpoint: Path) -> None:
        """Be where a checkpoint is."""
        self.left_out = read_left_out(self.folder)
        self.position = load_checkpoint(self.executor, checkpoint)
        self.intact = checkpoint, self.position.step

    def go_back(self) -> None:
        """After too many bad steps: back to the newest intact checkpoint; what they read is left out from now on."""
        self.end_save()
        self.end_logs()
        rollback = self.recipe.training.on_bad_steps == "rollback"
        checkpoint, documents = self.bad_steps.way_back(self.saver.folder, rollback=rollback, say=say)
        write_left_out(self.folder, sorted({*self.left_out, *documents}))
        self.load(checkpoint)
        self.begin_logs()

    def begin_run(self) -> None:
        """Make the run's folder, its logs and the progress bar.

        Raises:
            ConfigError: on all ranks, if the folder cannot be written.
        """
        if problem := from_rank_0(self.begin_folder() if rank() == 0 else None):
            raise ConfigError([str(problem)])
        say(f"{self.parameters / 1e6:.1f}M parameters, {self.trained / 1e6:.1f}M trained; {world_size()} ranks")
        self.begin_logs()

    def begin_logs(self) -> None:
        """The logs and the progress bar, from the step on that the run is at."""
        first, chosen = rank() == 0, self.recipe.logging.model_dump(exclude={"every", "slow_rank"})
        self.logs = Metrics(self.folder, self.position.step, **chosen) if first else None
        self.progress = ProgressBar(self.recipe.training.steps, self.position.step, shown=first)

    def begin_folder(self) -> str | None:
        """Keep the recipe with the run; says what is wrong if that cannot be."""
        resolved = write_yaml(self.recipe.model_dump(mode="json"))
        aside = self.folder / ".recipe.yaml"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_text(resolved)  # on a full disk the one of an earlier start stays
            aside.replace(self.folder / "recipe.yaml")
        except OSError as error:
            return f"training.output: {self.folder} cannot be written: {error.strerror}"
        return None

    def report(self, output: StepOutput, seconds: float) -> None:
        """Log a step."""
        row = self.metrics(output, seconds)
        self.progress.advance(output.loss, row["tokens_per_second"] * world_size(), row["peak_memory_gib"])
        if self.logs and self.position.step % self.recipe.logging.every == 0:
            self.logs.write(row)

    def say_of_step(self, text: str | None) -> None:
        """A line about the step just taken, if there is something to say."""
        if text:
            self.progress.say(f"step {self.position.step}: {text}")

    def metrics(self, output: StepOutput, seconds: float) -> dict[str, Any]:
        """A step's numbers, under the names of hmt_ds.reporting.metrics."""
        speed = output.fresh_tokens / seconds / world_size()
        flops = useful_flops_per_token(self.parameters, self.trained, self.executor.settings)
        on_cpu = self.executor.device.type == "cpu"
        device = None if on_cpu else torch.get_device_module(self.executor.device)
        peak = peak_flops(device.get_device_name()) if device else None
        row = {
            "step": self.position.step,
            "loss": output.loss,
            "perplexity": float(torch.tensor(output.loss).exp()),
            "learning_rate": output.learning_rate,
            "gradient_norm": output.gradient_norm,
            "skipped": skipped_steps(self.executor.engine),
            "slowest_rank": self.rank_times.slowest,
            "slowest_ratio": self.rank_times.ratio,
            "tokens_per_second": speed,
            "mfu": speed * flops / peak if peak else None,
            "peak_memory_gib": (device.max_memory_allocated() if device else resident_bytes()) / 2**30,
            "recall_distance": output.recall_distance,
            "seconds": seconds,
        }
        return {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}

    def save(self) -> None:
        """Write a checkpoint; one that cannot be written leaves those before, and the run goes on."""
        self.end_save()
        self.saver.begin(self.executor, self.position)
        if not self.saver.background:
            self.end_save()

    def end_save(self) -> None:
        """Make visible what is being written, if anything is."""
        try:
            if checkpoint := self.saver.finish():
                self.intact = checkpoint, step_of(checkpoint)
        except CheckpointError as error:
            self.progress.say(f"warning: {error}")

    def last_save(self) -> Path:
        """The checkpoint that a run ends with, which must not be missing.

        Raises:
            CheckpointError: if it cannot be written.
        """
        self.end_save()
        if self.intact is not None and self.intact[1] == self.position.step:
            return self.intact[0]  # it is intact; to write it anew would put it at risk
        self.saver.begin(self.executor, self.position)
        checkpoint = self.saver.finish()
        assert checkpoint is not None
        return checkpoint

    def finish(self) -> None:
        """The last checkpoint, the evaluation, the picture."""
        self.end_logs()
        checkpoint = self.last_save()
        self.held_out.evaluate(self.position.step)
        if rank() == 0:
            if rows := [row for row in read_metrics(self.folder / "metrics.jsonl") if row["loss"] is not None]:
                first, last = rows[0]["loss"], [row["loss"] for row in rows[-10:]]
                mean = sum(last) / len(last)
                print(f"loss        {first:.3f} -> {mean:.3f} (mean of the last {len(last)} logged steps)")
                with warning(picture := self.folder / "loss.png"):
                    plot_loss(rows, picture)
                    print(f"picture     {picture}")
            print(f"checkpoint  {checkpoint}", flush=True)

    def stop_early(self) -> NoReturn:
        """Save and leave because somebody said so."""
        self.end_logs()
        raise Stopped(
            f"stopped after step {self.position.step}; checkpoint {self.last_save()}; go on with "
            "--checkpoint.resume auto"
        )

    def end_logs(self) -> None:
        """No more steps come."""
        self.progress.close()
        if self.logs:
            self.logs.close()
