"""Losses of held-out documents, by document, segment and part of the segment."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocumentLosses:
    """Summed losses of each document, by segment and part of the segment.

    Attributes:
        segment_length: L, tokens of a segment. Part i of p parts of a segment has the positions from i L / p (rounded
            up) on.
        losses: summed nats ``[documents, segments, parts]`` float64, by the memories used: ``own``, ``swapped``
            (another document's) or ``none``.
        tokens: number of labels summed over, each times its weight, in the layout of ``losses``. ``swapped`` scores
            only rows that could be paired with another document's, and is left out if there were none.
    """

    segment_length: int
    losses: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
