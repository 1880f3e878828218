"""Tables and pictures of answers to generated tasks, by task, document length, way of reading, place of the fact."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

ACROSS = 3  # panels side by side
NORMAL = 1.96  # 95% of a normal distribution lie within this many standard deviations of the mean


@dataclass(frozen=True)
class TaskFigures:
    """A model's answers to one task at one length of documents.

    Attributes:
        task: name of the task, such as ``babilong-qa1``.
        length: number of tokens of a document.
        documents: number of documents.
        chance: fraction (0 to 1) that a guess among all possible answers gets right.
        right: for each way of reading the documents (with their own memories, ``memory``; with another document's,
            ``swapped``; ...), 1 for each right answer and 0 for each other.
        places: for the first way of reading, such numbers in ten lists, by the tenth of the document in which the last
            needed fact is.
    """

    task: str
    length: int
    documents: int
    chance: float
    right: dict[str, list[float]]
    places: list[list[float]]


def tasks_table(figures: Sequence[TaskFigures]) -> Table:
    """Return a table of the percentage of right answers with Wilson's 95% intervals.

    It has a row for each task and length, and a column for each way of reading the documents (with memory, without,
    ...).

    Args:
        figures: a model's answers to each task at each length.
    """
    readings = list(figures[0].right)
    table = Table(title="right answers in percent, with 95% intervals")
    for column in ("task", "tokens", "documents", *readings, "chance"):
        table.add_column(column, no_wrap=True, justify="left" if column == "task" else "right")
    for row in figures:
        shares = [share(row.right[name]) for name in readings]
        table.add_row(row.task, f"{row.length:,}", str(row.documents), *shares, f"{100 * row.chance:.0f}")
    return table


def share(right: Sequence[float]) -> str:
    """Format the fraction of right answers in percent with Wilson's 95% interval, as ``80 [66, 89]``.

    Args:
        right: 1 for each right answer and 0 for each other.
    """
    low, high = wilson(sum(right), len(right))
    return f"{100 * sum(right) / len(right):.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def wilson(right: float, number: int) -> tuple[float, float]:
    """Return low and high end (0 to 1) of Wilson's 95% interval of a fraction.

    Unlike the normal interval it is not empty if all answers are right, or all wrong.

    Args:
        right: number of right answers.
        number: number of all answers.
    """
    mean, square = right / number, NORMAL**2 / number
    middle = (mean + square / 2) / (1 + square)
    half = NORMAL * math.sqrt(mean * (1 - mean) / number + square / (4 * number)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def plot_places(figures: Sequence[TaskFigures], file: Path) -> None:
    """Draw a heat map per task of the fraction of right answers, by document length and by place of the fact.

    Args:
        figures: the answers to each task at each length; only the first way of reading the documents is drawn.
        file: picture file to write.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt  # takes long, and tables do without

    tasks = list(dict.fromkeys(row.task for row in figures))
    across, down = min(ACROSS, len(tasks)), math.ceil(len(tasks) / ACROSS)
    size = (4 * across + 1, down * (1.5 + 0.5 * len(figures) / len(tasks)))
    figure, panels = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axes in panels.flat[len(tasks) :]:
        axes.remove()
    for axes, task in zip(panels.flat, tasks, strict=False):
        rows = [row for row in figures if row.task == task]
        shares = [[sum(part) / len(part) if part else math.nan for part in row.places] for row in rows]
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_yticks(range(len(rows)), [f"{row.length:,}" for row in rows])
        axes.set_xticks([-0.5, len(shares[0]) / 2 - 0.5, len(shares[0]) - 0.5], ["0%", "50%", "100%"])
        axes.set(title=task, xlabel="place of the last needed fact", ylabel="tokens")
    figure.colorbar(
        image, ax=panels.ravel().tolist()[: len(tasks)], label=f"right answers, {next(iter(figures[0].right))}"
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)
