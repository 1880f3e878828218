"""Losses of held-out documents, by document, segment and part of the segment."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocumentLosses:
    """Summed losses of each document, by segment and part of the segment.

    Attributes:
        segment_length: tokens of a segment, L. Part i of p equal parts begins at position i L / p, rounded up.
        losses: summed nats ``[documents, segments, parts]`` float64, by the memories used: ``own``, ``swapped``
            (another document's) or ``none``.
        tokens: summed weights of the labels (each 1 by default), in the layout of ``losses``. ``swapped`` scores only
            rows that could be paired with another document's row, and is left out if there were none.
    """

    segment_length: int
    losses: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
