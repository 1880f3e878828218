"""Record a run's optimizer steps: metrics in the run's folder, progress on the screen, a summary at the end."""

import logging
import math
from pathlib import Path

import torch

from hmt_ds.checkpoint import RunPosition
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.recipe_yaml import write_yaml
from hmt_ds.distributed.deepspeed_internals import skipped_steps
from hmt_ds.distributed.process_group import rank, world_size
from hmt_ds.parallel.deepspeed_config.lr_schedule import DEEPSPEED_SCHEDULES, REHEARSED, make_scheduler, rates
from hmt_ds.parallel.protocols import Executor, StepOutput
from hmt_ds.planning.flops import peak_flops, useful_flops_per_token
from hmt_ds.reporting.metrics import Metrics, Row, read_metrics
from hmt_ds.reporting.progress import Progress
from hmt_ds.training.rank import peak_resident_bytes
from hmt_ds.training.stragglers import StragglerDetector
from hmt_ds.training.validation import warn_if_unwritable

logger = logging.getLogger(__name__)


class WarmUp:
    """Measures how many seconds compiling, measuring memory and capturing CUDA graphs add to the first steps of a run.

    The first step after them shows how long a step takes without that work.

    Args:
        steps: number of first steps that contain such work.
    """

    def __init__(self, steps: int):
        self.steps, self.seconds = steps, list[float]()

    def step_done(self, seconds: float) -> None:
        """Count an optimizer step; after the first that compiled and measured nothing, log the seconds that this took.

        Args:
            seconds: duration of the step.
        """
        if len(self.seconds) > self.steps or not self.steps:
            return
        self.seconds.append(seconds)
        if len(self.seconds) > self.steps:
            added = max(0.0, sum(self.seconds) - len(self.seconds) * seconds)
            logger.info("compiling and measuring, in the first %d steps: %.1f s", self.steps, added)


class RunLog:
    """Writes metrics and shows progress of a run, from its current step on. Only rank 0 writes.

    Args:
        recipe: the checked recipe.
        executor: the model with its optimizer.
        parameters: number of parameters of the whole model.
        trained: number of trained parameters.
        stragglers: detector that names the slowest rank in the metrics.
    """

    def __init__(
        self, recipe: Recipe, executor: Executor, parameters: int, trained: int, stragglers: StragglerDetector
    ):
        self.recipe, self.executor, self.stragglers = recipe, executor, stragglers
        self.folder = Path(recipe.training.output)
        self.flops_per_token = useful_flops_per_token(parameters, trained, executor.settings)
        self.metrics: Metrics | None = None
        self.progress: Progress | None = None
        self.warm_up = WarmUp(executor.budget.warm_up_steps)

    def open(self, step: int) -> None:
        """Open the files and the progress bar of a run.

        Args:
            step: number of finished steps; metrics of later steps are dropped from the files.
        """
        first, options = rank() == 0, self.recipe.logging
        chosen = options.model_dump(exclude={"every", "slow_rank", "memory_probe"})
        recipe = self.recipe.model_dump(mode="json")
        self.metrics = Metrics(self.folder, step, recipe=recipe, **chosen) if first else None
        self.progress = Progress(self.recipe.training.steps, step, every=options.every, shown=first)

    def end_progress(self) -> None:
        """Close the progress bar after the last step, while metrics of evaluations may still follow."""
        if self.progress:
            self.progress.close()

    def close(self) -> None:
        """Close the files of metrics and the progress bar, at the end of the run or before a rollback to an earlier
        step."""
        self.end_progress()
        if self.metrics:
            self.metrics.close()

    def record(self, output: StepOutput, position: RunPosition, seconds: float) -> None:
        """Write a training step's metrics and show its progress.

        Args:
            output: results of the step.
            position: how far the run has come: its step, and its position in the data.
            seconds: duration of the step.
        """
        self.warm_up.step_done(seconds)
        row = self.row(output, position, seconds)
        if self.progress:
            loss = output.loss if output.labels else None
            self.progress.advance(loss, row["tokens_per_second"] * world_size(), row["peak_memory_gib"])
        if self.metrics and position.step % self.recipe.logging.every == 0:
            self.metrics.write(row)

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Write the results of an evaluation beside the metrics of its optimizer step.

        Args:
            step: optimizer step of the weights.
            figures: numbers by name, such as ``evaluation/loss``; those that are not finite are left out.
        """
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        if self.metrics and finite:
            self.metrics.write_evaluation({"step": step, **finite})

    def row(self, output: StepOutput, position: RunPosition, seconds: float) -> Row:
        """Return a training step's metrics by name, as metrics.jsonl has them; None where unknown or not finite.

        Args:
            output: results of the step.
            position: how far the run has come: its step, and its position in the data.
            seconds: duration of the step.
        """
        speed = output.fresh_tokens / seconds / world_size()
        on_cpu = self.executor.device.type == "cpu"
        device = None if on_cpu else torch.get_device_module(self.executor.device)
        peak = peak_flops(device.get_device_name()) if device else None
        loss = output.loss if output.labels else math.nan  # documents of one token have no label
        row = {
            "step": position.step,
            "loss": loss,
            "perplexity": float(torch.tensor(loss).exp()),
            "learning_rate": output.learning_rate,
            "gradient_norm": output.gradient_norm,
            "skipped": skipped_steps(self.executor.engine),
            "slowest_rank": self.stragglers.slowest_rank,
            "slowest_ratio": self.stragglers.slowest_ratio,
            "tokens_per_second": speed,
            "mfu": speed * self.flops_per_token / peak if peak else None,
            "peak_memory_gib": (device.max_memory_allocated() if device else peak_resident_bytes()) / 2**30,
            "recall_distance": output.recall_distance,
            "recall_loss": output.recall_loss,
            "seconds": seconds,
        }
        return {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}

    def print_summary(self, checkpoint: Path) -> None:
        """Print a run's first and final loss (nats per label) and its last checkpoint's path; plot the loss into its
        folder.

        Args:
            checkpoint: folder of the last checkpoint.
        """
        if rank() != 0:
            return
        from hmt_ds.reporting.plots import plot_loss  # imports matplotlib

        if rows := [row for row in read_metrics(self.folder / "metrics.jsonl") if row.get("loss") is not None]:
            first, last = rows[0]["loss"], [row["loss"] for row in rows[-10:]]
            mean = sum(last) / len(last)
            print(f"loss        {first:.3f} -> {mean:.3f} (mean of the last {len(last)} logged steps)")
            with warn_if_unwritable(picture := self.folder / "loss.png"):
                plot_loss(rows, picture)
                print(f"picture     {picture}")
        print(f"checkpoint  {checkpoint}", flush=True)


def create_folder(recipe: Recipe) -> str | None:
    """Create the folder ``training.output`` and write the recipe into it as recipe.yaml.

    Args:
        recipe: the recipe.

    Returns:
        An error line if that fails, else None.
    """
    folder, resolved = Path(recipe.training.output), write_yaml(recipe.model_dump(mode="json"))
    aside = folder / ".recipe.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside.write_text(resolved)  # on a full disk the recipe of an earlier start stays
        aside.replace(folder / "recipe.yaml")
    except OSError as error:
        return f"training.output: {folder} cannot be written: {error.strerror}: name another folder, or free space"
    return None


def describe_rates(recipe: Recipe, first: int) -> str:
    """Describe for the log the backbone's learning rate at some steps up to the end of the run.

    Args:
        recipe: the recipe.
        first: number of the first step to describe.
    """
    schedule, last = recipe.schedule, recipe.training.steps
    if first > last:
        return f"all {last} steps are done"
    steps = sorted({first + (last - first) * part // 4 for part in range(5)})
    if schedule.name not in DEEPSPEED_SCHEDULES:
        steps = [step for step in steps if step <= REHEARSED]
    shares = rates(make_scheduler(schedule.name, schedule.params, last), steps)
    shown = [f"{recipe.optimizer.lr * share:.3g} at step {step}" for step, share in zip(steps, shares, strict=True)]
    return f"learning rate: {', '.join(shown)} ({schedule.name})"
