"""Losses of held-out documents, by document, segment and part of the segment."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocumentLosses:
    """Summed losses of each document, by segment and part of the segment.

    Attributes:
        segment_length: L. Part i of p parts of a segment has the positions from i L / p (rounded up) on.
        losses: summed nats ``[documents, segments, parts]`` float64, by the memories used: ``own``, ``swapped``
            (another document's) or ``none``.
        tokens: number of tokens summed over, in the same layout. ``swapped`` scores only rows that had a partner, and
            is left out if none had one.
    """

    segment_length: int
    losses: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
