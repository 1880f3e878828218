"""Metrics of a run: a JSON line per logged step, and the same numbers to wandb, TensorBoard and CSV.

Names: loss (nats per label), perplexity, learning_rate, gradient_norm, tokens_per_second (per rank, fresh tokens), mfu,
peak_memory_gib (of the rank that reports), recall_distance (segments), seconds (of the step), skipped (steps so far),
slowest_rank (of the last look at the ranks' own times), slowest_ratio (its time by its peers' median).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from hmt_ds.reporting.monitors import TensorBoard, Wandb

Row = dict[str, Any]


class Log(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None:
        """Add one step."""

    def close(self) -> None:
        """No more steps come."""


class Metrics:
    """All logs of a run. One that cannot be written costs a warning, and never the run.

    Args:
        folder: of the run.
        resume_step: what was logged of later steps is dropped: that part of the run is done again.
        wandb: ``off``, ``offline`` or ``online``.
        project: wandb's project.
        tensorboard, csv: whether to write these.
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
    ):
        self.logs: dict[str, Log] = {}
        self.warned: set[str] = set()
        self.begin("metrics.jsonl", lambda: json_lines(folder, resume_step))
        if csv:
            self.begin("metrics.csv", lambda: csv_lines(folder, resume_step))
        if tensorboard:
            self.begin("tensorboard", lambda: TensorBoard(folder, resume_step))
        if wandb != "off":
            self.begin("wandb", lambda: Wandb(folder, wandb, project))

    def begin(self, name: str, make: Callable[[], Log]) -> None:
        """Begin a log."""
        with self.warning(name):
            self.logs[name] = make()

    def write(self, row: Row) -> None:
        """Log one step everywhere."""
        for name, log in self.logs.items():
            with self.warning(name):
                log.write(row)

    def close(self) -> None:
        """No more steps come."""
        for name, log in self.logs.items():
            with self.warning(name):
                log.close()

    @contextmanager
    def warning(self, name: str) -> Iterator[None]:
        """Around what a full disk or a library's trouble can stop; says so once for each log."""
        try:
            yield
        except Exception as error:  # whatever a file system or a library makes of it
            if name not in self.warned:
                tqdm.write(f"warning: {name} cannot be written: {error}; training goes on", file=sys.stderr)
            self.warned.add(name)


class Lines:
    """A file with a line for each step.

    Args:
        file: is appended to.
        resume_step: lines after this step are dropped, and a last one that a kill has torn.
        step_of: a line's step.
        as_line: a row's line.
        head: the line before the first row's.
    """

    def __init__(
        self,
        file: Path,
        resume_step: int,
        step_of: Callable[[str], int],
        as_line: Callable[[Row], str],
        head: Callable[[Row], str] | None = None,
    ):
        self.file, self.as_line, self.head = file, as_line, head
        self.waiting = ""
        file.touch()
        cut(file, lambda line: step_of(line) <= resume_step)

    def write(self, row: Row) -> None:
        """Append one step, after those that found no room."""
        if self.head and not self.waiting and not self.file.stat().st_size:
            self.waiting = self.head(row) + "\n"
        self.waiting += self.as_line(row) + "\n"
        self.close()

    def close(self) -> None:
        """Append what waits; the file is open no longer than that."""
        size = self.file.stat().st_size
        try:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(self.waiting)
        except OSError:
            with suppress(OSError):
                truncate(self.file, size)  # no part of a line
            raise
        self.waiting = ""


def cut(file: Path, keep: Callable[[str], bool]) -> None:
    """Shorten a file to its first whole lines that are to be kept. In place: a full disk has no room for a copy."""
    size = 0
    for line in file.read_bytes().splitlines(keepends=True):
        try:
            kept = line.endswith(b"\n") and keep(line.decode())
        except (ValueError, KeyError):
            break
        if not kept:
            break
        size += len(line)
    truncate(file, size)


def truncate(file: Path, size: int) -> None:
    """Shorten a file to so many bytes."""
    with file.open("r+b") as out:
        out.truncate(size)


def json_lines(folder: Path, resume_step: int) -> Lines:
    """``metrics.jsonl``; floats are written so that they read back as the same bits."""
    return Lines(folder / "metrics.jsonl", resume_step, lambda line: json.loads(line)["step"], json.dumps)


def csv_lines(folder: Path, resume_step: int) -> Lines:
    """``metrics.csv``, a column for each metric; empty where there is no number."""
    return Lines(
        folder / "metrics.csv",
        resume_step,
        lambda line: 0 if line.startswith("step,") else int(line.split(",")[0]),
        lambda row: ",".join("" if value is None else repr(value) for value in row.values()),
        head=",".join,
    )


def read_metrics(file: Path) -> list[Row]:
    """The rows of a run so far; a torn last line of a killed run is left out.

    A loss or norm that was not finite is None: JSON has no such numbers.
    """
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
