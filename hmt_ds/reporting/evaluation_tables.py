"""Tables of held-out losses with their confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from rich import box
from rich.table import Table

WIDTH = 120  # of tables that are printed into a file

Interval = tuple[float, float, float]  # a figure, and both ends of its 95% interval
COSTS = {"swapped": "cost of others' memory", "none": "cost of no memory"}


class SpanLoss(Protocol):
    """Protocol of the loss on a part of the tokens (one row of a table).

    Attributes:
        first, below: smallest number of segments read before a token of this row (or position in the segment), and one
            more than the largest.
        tokens: number of scored tokens.
        nats: mean loss per token in nats, with its 95% interval.
    """

    @property
    def first(self) -> int: ...
    @property
    def below(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def nats(self) -> Interval: ...


class LossRow(SpanLoss, Protocol):
    """Protocol of a run's losses on a part of the tokens, such as :class:`hmt_ds.evaluation.figures.Row`.

    Attributes:
        perplexity: exp of the mean loss.
        costs: increase of the loss in nats per token with other memories: another document's (``swapped``), or
            ``none``.
    """

    @property
    def perplexity(self) -> float: ...
    @property
    def costs(self) -> Mapping[str, Interval]: ...


class RunFigures(SpanLoss, Protocol):
    """Protocol of one run's loss on a part of the tokens, in a comparison of runs.

    An example is :class:`hmt_ds.evaluation.compare.RunRow`.

    Attributes:
        run: name of the run.
        difference: loss minus that of the first run, in nats per token; None for the first run.
        share: fraction of the gap between the first and the last run that the run closes; None without a gap.
    """

    @property
    def run(self) -> str: ...
    @property
    def difference(self) -> Interval | None: ...
    @property
    def share(self) -> Interval | None: ...


def evaluation_table(rows: Sequence[LossRow], positions: Sequence[LossRow], title: str) -> Table:
    """Return a table of held-out losses in nats per token, with 95% intervals.

    Args:
        rows: losses by the number of segments of the document that were read before a token.
        positions: losses by the token's position in its segment.
        title: title of the table.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD)
    instead = list(rows[0].costs)
    for column in ("segments read", "tokens", "perplexity", "nats per token", *(COSTS[name] for name in instead)):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(span(row), *cells(row, instead))
    table.add_section()
    for number, row in enumerate(positions):
        table.add_row(("position " if number == 0 else "") + span(row), *cells(row, instead))
    return table


def cells(row: LossRow, instead: Sequence[str]) -> list[str]:
    """Format one run's losses as the cells of a table row: tokens, perplexity, nats per token, and costs of other
    memories.

    Args:
        row: the losses.
        instead: names of the other memories whose cost is shown: ``swapped`` (another document's), ``none``.
    """
    if not row.tokens:
        return ["0", *["-"] * (2 + len(instead))]
    return [f"{row.tokens:,}", f"{row.perplexity:.2f}", *map(with_interval, (row.nats, *map(row.costs.get, instead)))]


def span(row: SpanLoss) -> str:
    """Format the range of segments read before (or of positions) that a table row covers: ``3``, or ``4 to 7``."""
    last = row.below - 1
    return str(row.first) if last == row.first else f"{row.first} to {last}"


def runs_table(tables: Sequence[Sequence[RunFigures]], title: str, *, gap: bool) -> Table:
    """Return a table that compares the losses of runs, with a section for each part of the tokens.

    Args:
        tables: for each part of the tokens, the loss of each run.
        title: title of the table.
        gap: add each run's fraction of the gap between the first and the last run.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, caption="intervals over documents say nothing of other seeds")
    table.add_column("tokens read", justify="right")
    table.add_column("run")
    for column in ("tokens", "perplexity", "nats per token", "more than the first", *(["share of the gap"] * gap)):
        table.add_column(column, justify="right")
    for rows in tables:
        for number, row in enumerate(rows):
            figures = [with_interval(row.nats), with_interval(row.difference)]
            figures += [percent(row.share)] if gap else []
            perplexity = f"{math.exp(min(row.nats[0], 700)):.2f}"
            table.add_row("" if number else span(row), row.run, f"{row.tokens:,}", perplexity, *figures)
        table.add_section()
    return table


def percent(share: Interval | None) -> str:
    """Format a fraction (0 to 1) and its 95% interval in percent; a dash for None.

    Args:
        share: the fraction with its interval.
    """
    return "-" if share is None else "{:z.0%} [{:z.0%}, {:z.0%}]".format(*share)


def with_interval(value: Interval | None) -> str:
    """Format a value with its 95% interval, for a table cell; a dash for None or nan.

    Args:
        value: mean, low and high end.
    """
    if value is None or value[0] != value[0]:
        return "-"
    mean, low, high = value
    return f"{mean:z.3f}" if low != low else f"{mean:z.3f} [{low:z.3f}, {high:z.3f}]"
