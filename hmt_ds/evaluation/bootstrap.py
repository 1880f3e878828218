"""Confidence intervals of means over documents, by a paired bootstrap."""

from typing import NamedTuple

import numpy as np

DRAWS = 10_000
SEED = 0
LEVEL = 0.95
AT_A_TIME = 2**22  # document numbers that are drawn at a time


class Interval(NamedTuple):
    """A mean over documents and its 95% confidence interval; nan if it is the mean of no tokens.

    Attributes:
        mean: the mean over all documents.
        low, high: ends of the interval; nan with fewer than two documents.
    """

    mean: float
    low: float
    high: float


def resampled_sums(values: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Sum each column over documents drawn with replacement (bootstrap).

    All columns share the draws, and so do all calls with equally many documents, so differences are paired.

    Args:
        values: ``[documents, columns]``.
        draws: number of bootstrap draws.

    Returns:
        The sums of all draws, ``[draws, columns]``.
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
    """Return a mean over documents with its 95% confidence interval.

    Args:
        mean: the mean over all documents.
        drawn: the mean in each bootstrap draw, ``[draws]``.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(mean, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def mean_intervals(sums: np.ndarray, counts: np.ndarray) -> list[Interval]:
    """Return each column's mean per token with its 95% confidence interval, by a bootstrap over documents.

    Args:
        sums: summed nats of each document, ``[documents, columns]``; may be the difference of two summed losses.
        counts: number of tokens of each document, ``[documents, columns]``.
    """
    drawn_sums, drawn_counts = np.split(resampled_sums(np.hstack([sums, counts])), 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means, drawn = sums.sum(axis=0) / counts.sum(axis=0), drawn_sums / drawn_counts
    drawn[:, (counts > 0).sum(axis=0) < 2] = np.nan
    return [interval(float(mean), column) for mean, column in zip(means, drawn.T, strict=True)]
