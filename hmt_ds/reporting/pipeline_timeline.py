"""Draw a pipeline schedule in the terminal: one line per stage, wrapped into blocks of the terminal's width."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol

from rich.text import Text

STYLES = {
    ("segment", False): ("black on bright_blue", "a segment forward"),
    ("segment", True): ("black on bright_green", "a segment backward"),
    ("summary", False): ("black on bright_cyan", "its summary forward"),
    ("summary", True): ("black on bright_yellow", "its summary backward"),
    ("recall", False): ("black on bright_magenta", "recall forward"),
    ("recall", True): ("black on magenta", "recall backward"),
}
LABEL = 9  # columns of the stage's name
MAX_LINES = 48  # lines of stages; what does not fit is cut off, except for the first block
SHORTEST, NAMED = 2, 4  # fewest columns of the shortest bar, and of a segment's forward pass


class Pass(Protocol):
    """Protocol of a forward or backward pass to draw; its ``repr`` is the name shown, such as ``F2.0``."""

    @property
    def kind(self) -> str:
        """Kind of the pass: ``segment``, ``summary`` (for a retrieval query) or ``recall`` (retrieval of memories)."""

    @property
    def backward(self) -> bool:
        """Whether the pass to draw is a backward pass."""


class Bar(Protocol):
    """Protocol of a pipeline pass with its start and end, in any unit of time."""

    @property
    def action(self) -> Pass:
        """The forward or backward pass that the bar shows."""

    @property
    def start(self) -> float:
        """Time at which the pipeline pass starts, since the schedule began."""

    @property
    def stop(self) -> float:
        """Time at which the pipeline pass ends, since the schedule began."""


def timeline_lines(stages: Sequence[Sequence[Bar]], width: int) -> Iterator[Text]:
    """Yield the lines of text that draw a pipeline schedule in the terminal, with a legend.

    Args:
        stages: the timed passes of each stage, by start; passes that take no time are not drawn.
        width: characters per line.
    """
    stages = [[bar for bar in bars if bar.stop > bar.start] for bars in stages]
    times = [(bar.action, bar.stop - bar.start) for bars in stages for bar in bars]
    main = min(time for action, time in times if action.kind == "segment" and not action.backward)
    unit = min(min(time for _, time in times) / SHORTEST, main / NAMED)
    end, columns = max(bars[-1].stop for bars in stages), max(width - LABEL, 20)
    blocks = -(-round(end / unit) // columns)
    shown = min(blocks, max(1, MAX_LINES // len(stages)))
    rows = [cells(bars, unit, shown * columns) for bars in stages]
    for first in range(0, shown * columns, columns):
        yield Text(f"time {first * unit:g}", style="dim")
        for number, row in enumerate(rows):
            line = Text(f"stage {number}".ljust(LABEL), end="")
            for style, run in groupby(row[first : first + columns], key=lambda cell: cell[1]):
                line.append("".join(character for character, _ in run), style)
            line.rstrip()
            line.end = "\n"
            yield line
    if shown < blocks:
        yield Text(
            f"cut off at time {shown * columns * unit:g} of {end:g}; --picture FILE draws all of it", style="bold"
        )
    yield legend(stages)


def cells(bars: Sequence[Bar], unit: float, columns: int) -> list[tuple[str, str]]:
    """Return the characters of a stage's line in a drawn pipeline schedule: a pair of character and style per column.

    Args:
        bars: timed passes of the stage, by start.
        unit: time per column.
        columns: number of columns.
    """
    row = [(" ", "")] * columns
    for bar in bars:
        start, stop = round(bar.start / unit), round(bar.stop / unit)
        if start >= columns:
            break
        style, _ = STYLES[bar.action.kind, bar.action.backward]
        text = label(bar.action, stop - start).ljust(stop - start, "-")
        row[start:stop] = [(character, style) for character in text]
    return row


def label(action: Pass, columns: int) -> str:
    """Return the name of a pipeline pass, such as ``F0.1``, shortened to at most ``columns`` characters.

    Args:
        action: the pass.
        columns: number of characters.
    """
    whole = repr(action)
    return next(text for text in (whole, whole.split(".")[0], whole[0]) if len(text) <= columns)


def legend(stages: Sequence[Sequence[Bar]]) -> Text:
    """Return the legend of a drawn pipeline schedule: the meaning of letters and colours.

    Args:
        stages: the timed passes of each stage; only kinds that occur are explained.
    """
    drawn = {(bar.action.kind, bar.action.backward): repr(bar.action)[0] for bars in stages for bar in bars}
    line = Text()
    for key, (style, words) in STYLES.items():
        if key in drawn:
            line.append(f" {drawn[key]} ", style).append(f" {words}  ")
    return line.append("(F2.0: segment 2 of micro-batch 0)", "dim")
