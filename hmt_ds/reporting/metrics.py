"""Metrics of a run: one JSON line per logged step, and the same numbers to wandb, TensorBoard and CSV.

Names: loss (nats per label), perplexity, learning_rate, gradient_norm, tokens_per_second (fresh tokens per rank), mfu,
peak_memory_gib (of rank 0), recall_distance (segments), recall_loss (nats), seconds (duration of the step), skipped
(number of skipped steps so far), slowest_rank (in the last comparison of the ranks' own times), slowest_ratio (its time
divided by the median of its peers).

The figures of an evaluation are a row of their own, with the step of the weights and names such as
``evaluation/babilong-qa1/4096``: ``evaluation/loss`` (held-out nats per token), or fractions of right answers. They are
not in metrics.csv, whose rows have equal columns.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from hmt_ds.reporting.monitors import Row, TensorBoard, Tracker, Wandb

logger = logging.getLogger(__name__)

CSV = "metrics.csv"


class Sink(Protocol):
    """Protocol of an object that stores a run's metrics: a file or a tracker."""

    def write(self, row: Row) -> None:
        """Write the metrics of one step.

        Args:
            row: values by name, such as ``{"step": 10, "loss": 2.1}``; None for a missing one.
        """

    def close(self) -> None:
        """Write metrics that are still buffered; called once after the last step."""


class Metrics:
    """Writes the metrics of a run to files and trackers; one that fails causes a warning, and the run continues.

    Args:
        folder: folder of the run.
        resume_step: last step before the run is resumed; metrics of later steps are dropped, because the run takes
            these steps again.
        wandb: ``off``, ``offline`` or ``online``.
        project: name of the project in wandb and in trackers.
        tensorboard, csv: whether to write TensorBoard events and metrics.csv.
        trackers: accelerate's names of further trackers, such as ``mlflow``.
        recipe: the resolved recipe as nested dicts, stored with the run in wandb and trackers.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int = 0,
        *,
        wandb: str = "off",
        project: str = "hmt_ds",
        tensorboard: bool = False,
        csv: bool = False,
        trackers: Iterable[str] = (),
        recipe: dict[str, object] | None = None,
    ):
        self.sinks: dict[str, Sink] = {}
        self.warned: set[str] = set()
        self.open("metrics.jsonl", lambda: json_lines(folder, resume_step))
        if csv:
            self.open(CSV, lambda: csv_lines(folder, resume_step))
        if tensorboard:
            self.open("tensorboard", lambda: TensorBoard(folder, resume_step))
        if wandb != "off":
            self.open("wandb", lambda: Wandb(folder, wandb, project, recipe or {}))
        for name in trackers:
            self.open(name, partial(Tracker, folder, name, project, recipe or {}))

    def open(self, name: str, make: Callable[[], Sink]) -> None:
        """Open a file or tracker for metrics; if that fails, log a warning, and the run continues without it.

        Args:
            name: name of the file or tracker, for warnings.
            make: opens the file or tracker.
        """
        with self.warn_once(name):
            self.sinks[name] = make()

    def write(self, row: Row) -> None:
        """Write the metrics of one optimizer step to all files and trackers; log a failure of one as a warning, once.

        Args:
            row: ``step`` and the metrics by name, such as ``loss`` (nats per label), as numbers or None.
        """
        for name, sink in self.sinks.items():
            with self.warn_once(name):
                sink.write(row)

    def write_evaluation(self, figures: Row) -> None:
        """Write the results of an evaluation to all files and trackers except metrics.csv.

        Args:
            figures: ``step``, and numbers whose names begin with ``evaluation/``.
        """
        for name, sink in self.sinks.items():
            if name != CSV:
                with self.warn_once(name):
                    sink.write(figures)

    def close(self) -> None:
        """Close all files and trackers of metrics."""
        for name, sink in self.sinks.items():
            with self.warn_once(name):
                sink.close()

    @contextmanager
    def warn_once(self, name: str) -> Iterator[None]:
        """Turn an exception in the ``with`` block into a logged warning, the first time only.

        Args:
            name: name of the file or tracker that the block writes to, such as ``metrics.jsonl``.
        """
        try:
            yield
        except Exception as error:  # file systems and monitoring libraries raise all kinds
            if name not in self.warned:
                logger.warning("%s cannot be written: %s; training goes on", name, error)
            self.warned.add(name)


class LineFile:
    """A text file of metrics with one line per logged step.

    Args:
        file: path of the file, which is appended to.
        resume_step: last step before the run is resumed; lines of later steps are dropped, and so is a last line that
            was cut short by a kill.
        step_of: returns the step of a line.
        as_line: formats a row of metrics as a line.
        header: formats a row's names as the file's first line; None for no such line.
    """

    def __init__(
        self,
        file: Path,
        resume_step: int,
        step_of: Callable[[str], int],
        as_line: Callable[[Row], str],
        header: Callable[[Row], str] | None = None,
    ):
        self.file, self.as_line, self.header = file, as_line, header
        self.unwritten = ""  # lines that did not fit on the disk
        file.touch()
        cut(file, lambda line: step_of(line) <= resume_step)

    def write(self, row: Row) -> None:
        """Append the line of an optimizer step, after earlier lines that could not be written because the disk was
        full.

        Args:
            row: the step's metrics by name.

        Raises:
            OSError: the disk is full; the line is kept and tried again at the next call.
        """
        if self.header and not self.unwritten and not self.file.stat().st_size:
            self.unwritten = self.header(row) + "\n"
        self.unwritten += self.as_line(row) + "\n"
        self.close()

    def close(self) -> None:
        """Append lines of metrics that could not be written before; the file itself is open only while lines are
        written.

        Raises:
            OSError: the lines still cannot be written.
        """
        size = self.file.stat().st_size
        try:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(self.unwritten)
        except OSError:
            with suppress(OSError):
                truncate(self.file, size)  # leave no part of a line
            raise
        self.unwritten = ""


def cut(file: Path, keep: Callable[[str], bool]) -> None:
    """Shorten a text file in place to its leading complete lines that satisfy a condition.

    A copy would be safer, but a full disk has no room for one.

    Args:
        file: path of the file.
        keep: the condition, called with each line until it returns False.
    """
    size = 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            kept = line.endswith(b"\n") and keep(line.decode())
        except (ValueError, LookupError, TypeError, RecursionError):
            break
        if not kept:
            break
        size += len(line)
    truncate(file, size)


def truncate(file: Path, size: int) -> None:
    """Shorten a file to its first ``size`` bytes.

    Args:
        file: path of the file.
        size: number of bytes.
    """
    with file.open("r+b") as out:
        out.truncate(size)


def json_lines(folder: Path, resume_step: int) -> LineFile:
    """Open metrics.jsonl in a run's folder to append steps; floats read back as the same bits.

    Args:
        folder: folder of the run.
        resume_step: last step to keep in the file.
    """
    return LineFile(folder / "metrics.jsonl", resume_step, lambda line: json.loads(line)["step"], json.dumps)


def csv_lines(folder: Path, resume_step: int) -> LineFile:
    """Open metrics.csv in a run's folder to append steps: a column per metric, None as empty cell.

    Args:
        folder: folder of the run.
        resume_step: last step to keep in the file.
    """
    return LineFile(
        folder / CSV,
        resume_step,
        lambda line: 0 if line.startswith("step,") else int(line.split(",")[0]),
        lambda row: ",".join("" if value is None else repr(value) for value in row.values()),
        header=",".join,
    )


def read_metrics(file: Path) -> list[Row]:
    """Read the rows of a run's metrics.jsonl, oldest first, each a dict of numbers by name; empty if there is no file.

    Rows of evaluations are left out. A loss or norm that was not finite is None, because JSON has no such numbers. A
    last line that was cut short by a kill is left out.
    """
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        if not any(name.startswith("evaluation/") for name in row):
            rows.append(row)
    return rows
