"""Losses by document, segment and place in the segment: what all figures of an evaluation are computed from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocumentLosses:
    """Summed losses of all documents.

    Attributes:
        segment_length: L. Part i of p of a segment has the positions from i L / p on, rounded up.
        losses: nats by reading, ``[documents, segments, parts]`` float64.
        tokens: the tokens that they are summed over, likewise. A swapped reading scores only rows that had a partner,
            and is left out where none had one.
    """

    segment_length: int
    losses: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
