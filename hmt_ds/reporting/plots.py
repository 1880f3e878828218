"""Draw pictures: loss of a run, held-out losses, comparison of runs, pipeline schedule."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from hmt_ds.reporting.evaluation_tables import COSTS, LossRow, RunFigures
from hmt_ds.reporting.monitors import Row
from hmt_ds.reporting.pipeline_timeline import Bar

COLOURS = {
    ("segment", False): "tab:blue",
    ("segment", True): "tab:green",
    ("summary", False): "tab:cyan",
    ("summary", True): "gold",
    ("recall", False): "tab:pink",
    ("recall", True): "tab:purple",
}

COST_COLOURS = {"swapped": "tab:orange", "none": "tab:gray"}


def plot_loss(rows: Sequence[Row], file: Path) -> None:
    """Plot the loss of each logged step, and the mean of the last ten, into a picture file.

    Args:
        rows: metrics of the logged steps, with ``step`` and ``loss`` (nats per token).
        file: picture file to write.
    """
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    means = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="logged steps")
    axes.plot(steps, means, color="tab:blue", label="mean of 10 logged steps")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_evaluation(rows: Sequence[LossRow], positions: Sequence[LossRow], file: Path) -> None:
    """Plot held-out losses, and how much they rise with another document's memory or without, with 95% intervals.

    Args:
        rows: losses by the number of segments of the document that were read before a token.
        positions: losses by the token's position in its segment.
        file: picture file to write.
    """
    costs = list(rows[0].costs)
    figure, panels = plt.subplots(1, 3 if costs else 2, figsize=(12 if costs else 8, 4), layout="constrained")
    for axes in panels[:-1]:
        axes.set_xscale("symlog", base=2, linthresh=1)  # a logarithmic axis that has a place for 0 segments
        axes.set_xticks([row.first for row in rows], [str(row.first) for row in rows])
        axes.minorticks_off()
        axes.set_xlabel("segments read before")
    draw_intervals(panels[0], rows, [("", "tab:blue")], "nats per token")
    drawn = [(name, COST_COLOURS[name]) for name in costs]
    label = "more nats per token than with own memory"
    if costs:
        draw_intervals(panels[1], rows, drawn, label)
    draw_intervals(panels[-1], positions, drawn or [("", "tab:blue")], label if costs else "nats per token")
    panels[-1].set_xlabel("position in the segment")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_intervals(axes: Axes, rows: Sequence[LossRow], series: Sequence[tuple[str, str]], label: str) -> None:
    """Draw curves of losses in nats per token, with their 95% intervals as error bars.

    Args:
        axes: matplotlib's axes.
        rows: losses, one for each position on the horizontal axis.
        series: for each curve, its name ("" for the loss, or a cost: ``swapped``, ``none``) and its colour.
        label: label of the vertical axis.
    """
    for name, colour in series:
        values = [row.costs[name] if name else row.nats for row in rows]
        means = [mean for mean, _, _ in values]
        bars = [[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]]
        named = COSTS.get(name)
        axes.errorbar([row.first for row in rows], means, bars, fmt="o-", color=colour, capsize=3, label=named)
        if name:
            axes.axhline(0, color="black", linewidth=0.8)
            axes.legend()
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)


def plot_runs(tables: Sequence[Sequence[RunFigures]], file: Path) -> None:
    """Plot each run's loss minus the first run's, with 95% intervals, by the number of tokens read before.

    Args:
        tables: for each part of the tokens, the loss of each run; the first run is the line at 0.
        file: picture file to write.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.axhline(0, color="black", linewidth=1, label=tables[0][0].run)
    for i, row in enumerate(tables[0][1:], 1):
        differences = [rows[i].difference or (math.nan,) * 3 for rows in tables]
        beside = 0.04 * (i - len(tables[0]) / 2)  # so that no bar hides another
        places = [number + beside for number in range(len(tables))]
        bars = [[mean - low for mean, low, _ in differences], [high - mean for mean, _, high in differences]]
        axes.errorbar(places, [mean for mean, _, _ in differences], bars, fmt="o-", capsize=3, label=row.run)
    axes.set_xticks(range(len(tables)), [f"{rows[0].first:,} to {rows[0].below - 1:,}" for rows in tables])
    axes.set(xlabel="tokens read before", ylabel=f"nats per token more than {tables[0][0].run}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_schedule(stages: Sequence[Sequence[Bar]], title: str, file: Path) -> None:
    """Draw the passes of each pipeline stage as bars over time, one stage below the other.

    Args:
        stages: timed passes of each stage, by start.
        title: title of the picture.
        file: picture file to write.
    """
    end = max(bars[-1].stop for bars in stages)
    figure, axes = plt.subplots(figsize=(min(40, 4 + end / 10), 1.5 + 0.5 * len(stages)), layout="constrained")
    edge = 0.5 if end < 1000 else 0  # thin bars would be nothing but edge
    for key, colour in COLOURS.items():
        for number, bars in enumerate(stages):
            spans = [(b.start, b.stop - b.start) for b in bars if (b.action.kind, b.action.backward) == key]
            spans = [span for span in spans if span[1] > 0]
            if spans:
                name = f"{key[0]}, {'backward' if key[1] else 'forward'}"
                axes.broken_barh(
                    spans, (number - 0.4, 0.8), color=colour, edgecolor="white", linewidth=edge, label=name
                )
    axes.set_yticks(range(len(stages)), [f"stage {number}" for number in range(len(stages))])
    axes.invert_yaxis()
    axes.set(xlabel="time", title=title, xlim=(0, end))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # keeps one handle of each name
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)
