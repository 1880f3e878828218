"""The figures of an evaluation: nats per token with intervals, what other memories cost, and a verdict.

A token is counted under the number of whole segments of its document that precede its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hmt_ds.evaluation.bootstrap import Interval, mean_intervals
from hmt_ds.evaluation.losses import DocumentLosses

WORTH_IT = 0.010  # nats per token: less is not called a use

Place = tuple[tuple[int, int], slice, slice]  # how a row is called, its segments, and its parts of these


@dataclass(frozen=True)
class Row:
    """The figures of some tokens of all documents.

    Attributes:
        first, below: the fewest segments that came before, and one more than the most; or positions in the segment.
        tokens: tokens scored.
        nats: per token, each segment read with its own memories.
        costs: how many nats per token more it takes with other memories (``swapped``, ``none``), on the same tokens.
    """

    first: int
    below: int
    tokens: int
    nats: Interval
    costs: dict[str, Interval]

    @property
    def perplexity(self) -> float:
        """exp(nats); inf where that overflows a float, nan where nothing was scored."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats.mean))


@dataclass(frozen=True)
class Figures:
    """The figures of an evaluation.

    Attributes:
        rows: by segments read before.
        positions: by position in the segment, over all segments of ``rows`` that have one before them.
        remembered: all tokens of ``positions``.
    """

    rows: list[Row]
    positions: list[Row]
    remembered: Row

    @property
    def verdict(self) -> str | None:
        """What the memory is worth, in a sentence; None if no other memories were read."""
        costs = self.remembered.costs
        if "none" not in costs or not self.remembered.tokens:
            return None
        if math.isnan(costs["none"].low):
            return "the memory's worth is not known: one document gives no interval"
        swapped, none = costs.get("swapped"), costs["none"]
        if swapped is None:
            helps = "helps" if useful(none) else "does not help"
            return f"the memory {helps}: no memory costs {described(none)}"
        use = "used" if useful(none) else "read, but does not help"
        said = f"the memory is {use if useful(swapped) else 'ignored'}: another document's memory costs "
        return f"{said}{described(swapped)}, no memory {described(none, unit='')}"


def segments_needed(segments_read: Sequence[int]) -> int:
    """Segments of a document that the evaluation reads: the last row reaches twice as far as it begins."""
    return max(1, 2 * max(segments_read))


def figures_of(found: DocumentLosses, segments_read: Sequence[int]) -> Figures:
    """Compute all figures.

    Args:
        segments_read: where the rows of the table begin, ascending; each reaches up to the next one.
    """
    depth, parts = found.losses["own"].shape[1:]
    ends = [*segments_read[1:], segments_needed(segments_read)]
    remembered, whole = slice(max(1, segments_read[0]), depth), slice(None)
    edges = [-(-found.segment_length * part // parts) for part in range(parts + 1)]
    places: list[Place] = [(span, slice(*span), whole) for span in zip(segments_read, ends, strict=True)]
    places += [(span, remembered, slice(part, part + 1)) for part, span in enumerate(pairwise(edges))]
    places.append(((remembered.start, depth), remembered, whole))
    rows = rows_of(found, places)
    return Figures(rows[: len(ends)], rows[len(ends) : -1], rows[-1])


def rows_of(found: DocumentLosses, places: Sequence[Place]) -> list[Row]:
    """The figures of some places in all documents."""

    def columns(values: np.ndarray) -> np.ndarray:
        return np.stack([values[:, segments, parts].sum(axis=(1, 2)) for _, segments, parts in places], axis=1)

    own, instead = found.losses["own"], [name for name in found.losses if name != "own"]
    # a row without a partner has no swapped loss: it is compared where it has one
    more = [np.where(found.tokens[name] > 0, found.losses[name] - own, 0) for name in instead]
    tokens = [columns(found.tokens[name]) for name in ("own", *instead)]
    intervals = mean_intervals(np.hstack([columns(losses) for losses in (own, *more)]), np.hstack(tokens))
    return [
        Row(
            *span,
            tokens=int(tokens[0][:, i].sum()),
            nats=intervals[i],
            costs={name: intervals[i + k * len(places)] for k, name in enumerate(instead, 1)},
        )
        for i, (span, _, _) in enumerate(places)
    ]


def useful(cost: Interval) -> bool:
    """Whether other memories cost so much that the own ones are of use."""
    return cost.mean >= WORTH_IT and cost.low > 0


def described(cost: Interval, unit: str = " nats") -> str:
    """A cost with its interval, for a sentence."""
    return f"{cost.mean:z.3f}{unit} [{cost.low:z.3f}, {cost.high:z.3f}]"
