"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt


def plot_loss(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Loss against steps, with its mean over the last ten."""
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    means = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.35, linewidth=1, label="each step")
    axes.plot(steps, means, color="tab:blue", label="mean of 10 steps")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_perplexity(rows: Sequence[Any], file: Path) -> None:
    """Held-out perplexity against segments read, memory on and off."""
    read = [row.segments_read for row in rows]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(read, [row.memory_off for row in rows], "o--", color="tab:gray", label="memory off")
    axes.plot(read, [row.memory_on for row in rows], "o-", color="tab:blue", label="memory on")
    axes.set_xscale("log", base=2)
    axes.set_xticks(read, [str(n) for n in read])
    axes.minorticks_off()
    axes.set(xlabel="segments read before", ylabel="held-out perplexity")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    plt.close(figure)
