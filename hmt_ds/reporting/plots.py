"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from hmt_ds.reporting.monitors import Row
from hmt_ds.reporting.pipeline_timeline import Bar
from hmt_ds.reporting.tables import PerplexityFigures

COLOURS = {
    ("segment", False): "tab:blue",
    ("segment", True): "tab:green",
    ("summary", False): "tab:cyan",
    ("summary", True): "gold",
    ("recall", False): "tab:pink",
    ("recall", True): "tab:purple",
}


def plot_loss(rows: Sequence[Row], file: Path) -> None:
    """Plot the loss against steps, with the mean of the last ten logged steps."""
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


def plot_perplexity(rows: Sequence[PerplexityFigures], file: Path) -> None:
    """Plot held-out perplexity against segments read, with memory on and off."""
    read = [row.segments_read for row in rows]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(read, [row.memory_off for row in rows], "o--", color="tab:gray", label="memory off")
    axes.plot(read, [row.memory_on for row in rows], "o-", color="tab:blue", label="memory on")
    axes.set_xscale("symlog", base=2, linthresh=1)  # a logarithmic axis that has a place for 0 segments
    axes.set_xticks(read, [str(n) for n in read])
    axes.minorticks_off()
    axes.set(xlabel="segments read before", ylabel="held-out perplexity")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_schedule(stages: Sequence[Sequence[Bar]], title: str, file: Path) -> None:
    """Draw the bars of each stage, one stage below the other.

    Args:
        stages: as for :func:`hmt_ds.reporting.pipeline_timeline.timeline_lines`.
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
