"""Intervals of means over documents, by a paired bootstrap."""

from typing import NamedTuple

import numpy as np

DRAWS = 10_000
SEED = 0
LEVEL = 0.95
AT_A_TIME = 2**22  # document numbers that are drawn at a time


class Interval(NamedTuple):
    """A figure and its 95% interval; nan where nothing was scored or fewer than two documents were."""

    mean: float
    low: float
    high: float


def resampled_sums(values: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Sums of each column over documents drawn with replacement, ``[draws, columns]``.

    All columns share the draws, and so do all calls with equally many documents: differences are paired.

    Args:
        values: ``[documents, columns]``.
    """
    documents, generator = len(values), np.random.default_rng(SEED)
    sums, step = [], max(1, AT_A_TIME // documents)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        drawn = generator.integers(documents, size=(count, documents)) + documents * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * documents).reshape(count, documents)
        sums.append(times @ values)
    return np.concatenate(sums)


def interval(mean: float, drawn: np.ndarray) -> Interval:
    """The interval around a figure, from the same figure of each draw ``[draws]``."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(mean, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def mean_intervals(sums: np.ndarray, counts: np.ndarray) -> list[Interval]:
    """The interval of each column's mean per token.

    Args:
        sums: nats of each document, ``[documents, columns]``; a difference of two readings gives that of their means.
        counts: tokens, likewise.
    """
    drawn_sums, drawn_counts = np.split(resampled_sums(np.hstack([sums, counts])), 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means, drawn = sums.sum(axis=0) / counts.sum(axis=0), drawn_sums / drawn_counts
    drawn[:, (counts > 0).sum(axis=0) < 2] = np.nan
    return [interval(float(mean), column) for mean, column in zip(means, drawn.T, strict=True)]
