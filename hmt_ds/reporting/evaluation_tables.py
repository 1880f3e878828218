"""Tables of evaluations, with intervals."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich import box
from rich.table import Table

WIDTH = 120  # of tables that are printed into a file

Interval = tuple[float, float, float]  # a figure, and both ends of its 95% interval
COSTS = {"swapped": "cost of others' memory", "none": "cost of no memory"}


class LossRow(Protocol):
    """The figures of some tokens (:class:`hmt_ds.evaluation.figures.Row`)."""

    @property
    def first(self) -> int: ...
    @property
    def below(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def perplexity(self) -> float: ...
    @property
    def nats(self) -> Interval: ...
    @property
    def costs(self) -> Mapping[str, Interval]: ...


def evaluation_table(rows: Sequence[LossRow], positions: Sequence[LossRow], title: str) -> Table:
    """Return a table of held-out losses in nats per token, by segments read and by position in the segment."""
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
    """Return the figures of a row, as text."""
    if not row.tokens:
        return ["0", *["-"] * (2 + len(instead))]
    return [f"{row.tokens:,}", f"{row.perplexity:.2f}", *map(with_interval, (row.nats, *map(row.costs.get, instead)))]


def span(row: LossRow) -> str:
    """Return what a row counts, from the first to the last."""
    last = row.below - 1
    return str(row.first) if last == row.first else f"{row.first} to {last}"


def with_interval(value: Interval | None) -> str:
    """Return a figure with its interval; a dash where there is neither."""
    if value is None or value[0] != value[0]:
        return "-"
    mean, low, high = value
    return f"{mean:.3f}" if low != low else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
