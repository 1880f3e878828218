"""Show how well a model retrieves from memory: tables and plots of right answers, and a map of retrieval weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from rich import box
from rich.table import Table

from hmt_ds.reporting.evaluation_tables import Interval
from hmt_ds.reporting.plots import plt


class RetrievalFigures(Protocol):
    """Protocol of retrieval results for tables and plots, such as :class:`hmt_ds.evaluation.retrieval.RetrievalRow`.

    Attributes:
        segments: number of segments of each document.
        documents, questions: number of documents, and of questions in them.
        right: fraction (0 to 1) of right answers, with its 95% interval.
        found: fraction of questions whose memory has the largest retrieval weight; None for models without retrieval.
    """

    @property
    def segments(self) -> int: ...
    @property
    def documents(self) -> int: ...
    @property
    def questions(self) -> int: ...
    @property
    def right(self) -> Interval: ...
    @property
    def found(self) -> Interval | None: ...


class Recalls(Protocol):
    """Protocol of the retrieval weights of one document, such as :class:`hmt_ds.evaluation.retrieval.RecallMap`.

    Attributes:
        weights: ``[segments, segments]``, for each segment the weights (0 to 1) of earlier segments' memories.
        told: ``[segments]``, for each segment the index of the segment whose memory answers its question; -1 for none.
    """

    @property
    def weights(self) -> np.ndarray: ...
    @property
    def told(self) -> np.ndarray: ...


def retrieval_table(rows: Sequence[RetrievalFigures], title: str, chance: float) -> Table:
    """Return a table of a model's fraction of right answers, with a row for each length of documents.

    Args:
        rows: results, one for each length.
        title: title of the table.
        chance: fraction (0 to 1) of right answers of a model that guesses.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.caption = f"chance: {chance:.1%}"
    for column in ("segments", "documents", "questions", "right", "memory found"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (percent(share) for share in (row.right, row.found))
        table.add_row(str(row.segments), f"{row.documents:,}", f"{row.questions:,}", *shares)
    return table


def percent(share: Interval | None) -> str:
    """Format a fraction (0 to 1) and its 95% interval in percent; a dash for None.

    Args:
        share: the fraction with its interval.
    """
    if share is None or share[0] != share[0]:
        return "-"
    mean, low, high = share
    return f"{mean:.1%}" if low != low else f"{mean:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


class RunAnswers(Protocol):
    """Protocol of a run's answers to questions, such as :class:`hmt_ds.evaluation.compare_retrieval.Answers`.

    Attributes:
        run: name of the run.
        chance: fraction (0 to 1) of right answers of a model that guesses.
        right: fraction of right answers with its 95% interval, by the number of segments of the documents.
    """

    @property
    def run(self) -> str: ...
    @property
    def chance(self) -> float: ...
    @property
    def right(self) -> Mapping[int, Interval]: ...


def answers_table(runs: Sequence[RunAnswers]) -> Table:
    """Return a table of the percentage of questions that each run answered right, with a row per document length.

    Args:
        runs: the runs' answers.
    """
    table = Table(title="questions answered right, with 95% intervals over documents", box=box.SIMPLE_HEAD)
    table.caption = f"chance: {runs[0].chance:.1%}"
    for column in ("segments", *(one.run for one in runs)):
        table.add_column(column, justify="right")
    for segments in runs[0].right:
        table.add_row(str(segments), *(percent(one.right[segments]) for one in runs))
    return table


def plot_answers(runs: Sequence[RunAnswers], file: Path) -> None:
    """Plot the fraction of questions that each run answered right against the length of the documents in segments.

    Args:
        runs: the runs' answers.
        file: picture file to write.
    """
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    segments = list(runs[0].right)
    for one in runs:
        draw_curve(axes, segments, [one.right[n] for n in segments], label=one.run)
    finish_shares(axes, segments, runs[0].chance)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_retrieval(rows: Sequence[RetrievalFigures], chance: float, recalls: Recalls | None, file: Path) -> None:
    """Plot the fraction of right answers against document length, and beside it one document's retrieval weights.

    Args:
        rows: results, one for each length of documents.
        chance: fraction (0 to 1) of right answers of a model that guesses.
        recalls: retrieval weights of one document; None to leave them out.
        file: picture file to write.
    """
    figure, panels = plt.subplots(1, 2 if recalls else 1, figsize=(10 if recalls else 5, 4.5), layout="constrained")
    curve, *maps = np.atleast_1d(panels)
    draw_shares(curve, rows, chance)
    if recalls:
        draw_recalls(maps[0], recalls)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_shares(axes: Axes, rows: Sequence[RetrievalFigures], chance: float) -> None:
    """Draw the fraction of right answers and of found memories against document length, with the level of guessing.

    Args:
        axes: matplotlib's axes.
        rows: results, one for each length of documents.
        chance: fraction (0 to 1) of right answers of a model that guesses.
    """
    segments = [row.segments for row in rows]
    drawn = {"answered right": ("tab:blue", [row.right for row in rows])}
    found = [row.found for row in rows if row.found is not None]
    if found:
        drawn["memory found"] = ("tab:purple", found)
    for name, (colour, shares) in drawn.items():
        draw_curve(axes, segments, shares, label=name, color=colour)
    finish_shares(axes, segments, chance)


def draw_curve(
    axes: Axes, segments: Sequence[int], shares: Sequence[Interval], *, label: str, color: str | None = None
) -> None:
    """Draw fractions of right answers with their 95% intervals as a curve over document length.

    Args:
        axes: matplotlib's axes.
        segments: document lengths, in segments.
        shares: a fraction (0 to 1) for each length.
        label: text of the legend.
        color: colour of the curve; None for matplotlib's next one.
    """
    means = np.array([mean for mean, _, _ in shares])
    bars = np.array([(mean - low, high - mean) for mean, low, high in shares]).T
    axes.errorbar(segments, means, bars, fmt="o-", capsize=3, label=label, color=color)


def finish_shares(axes: Axes, segments: Sequence[int], chance: float) -> None:
    """Add the chance level, the axes' labels and the legend to a plot of fractions.

    Args:
        axes: matplotlib's axes.
        segments: document lengths, in segments, for the horizontal axis.
        chance: fraction (0 to 1) of right answers of a model that guesses.
    """
    axes.axhline(chance, color="tab:gray", linestyle="--", label="chance")
    axes.set_xscale("log")
    axes.set_xticks(segments, [str(n) for n in segments])
    axes.minorticks_off()
    axes.set(xlabel="segments of the document", ylabel="share of questions", ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def draw_recalls(axes: Axes, recalls: Recalls) -> None:
    """Draw the retrieval weights of one document as a map, with circles around the memories that answer a question.

    Each row is a segment, and each column an earlier segment's memory.

    Args:
        axes: matplotlib's axes.
        recalls: the weights, and the right memories.
    """
    axes.imshow(recalls.weights, cmap="Purples", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    asked = np.flatnonzero(recalls.told >= 0)
    size = max(4, min(60, 2000 / len(recalls.told)))
    axes.scatter(
        recalls.told[asked], asked, s=size, facecolors="none", edgecolors="tab:orange", label="tells the answer"
    )
    axes.set(xlabel="segment remembered", ylabel="segment that answers", title="weight of each memory, one document")
    axes.legend(loc="upper right")
