"""Results of an evaluation: loss per token with intervals, the cost of replacing the memory, and a verdict.

A token's results are grouped by the number of whole segments of its document that precede the token's own segment.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hmt_ds.evaluation.bootstrap import Interval, mean_intervals
from hmt_ds.evaluation.losses import DocumentLosses

WORTH_IT = 0.010  # nats per token: less is not called a use

Place = tuple[tuple[int, int], slice, slice]  # a table row: its bounds, its segments, and its parts of each segment


@dataclass(frozen=True)
class Row:
    """The losses on a part of the tokens of all documents: one row of the printed table.

    Attributes:
        first, below: smallest number of whole segments read before a token of this row, and one more than the largest;
            or, in a table by position in the segment, the first position and one more than the last.
        tokens: number of scored tokens.
        nats: mean loss per token, in nats, with the document's own memories.
        costs: how many nats larger the loss per token is with another document's memories (``swapped``) or without
            memories (``none``), on the same tokens.
    """

    first: int
    below: int
    tokens: int
    nats: Interval
    costs: dict[str, Interval]

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token; inf if that overflows a float, nan without tokens."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.nats.mean))


@dataclass(frozen=True)
class Figures:
    """Mean losses of held-out documents, in nats per token, by number of segments read before and by position in the
    segment.

    Attributes:
        rows: losses by the number of whole segments read before a token.
        positions: losses by position in the segment, over the segments in ``rows`` without each document's first one.
        remembered: loss over all tokens counted in ``positions``.
    """

    rows: list[Row]
    positions: list[Row]
    remembered: Row

    @property
    def verdict(self) -> str | None:
        """A sentence on whether the memory lowers the loss (nats per token); None if other memories were not tried."""
        costs = self.remembered.costs
        if "none" not in costs or not self.remembered.tokens:
            return None
        if math.isnan(costs["none"].low):
            unknown = "the memory's worth is not known: one document gives no interval"
            return f"{unknown}: name more, or cut it by data.validation.separator"
        swapped, none = costs.get("swapped"), costs["none"]
        if swapped is None:
            helps = "helps" if useful(none) else "does not help"
            return f"the memory {helps}: no memory costs {described(none)}"
        use = "used" if useful(none) else "read, but does not help"
        said = f"the memory is {use if useful(swapped) else 'ignored'}: another document's memory costs "
        return f"{said}{described(swapped)}, no memory {described(none, unit='')}"


def segments_needed(segments_read: Sequence[int]) -> int:
    """Return how many segments of a document an evaluation reads: twice the lower bound of the table's last row.

    Args:
        segments_read: lower bounds of the table's rows, as numbers of segments read before a token.
    """
    return max(1, 2 * max(segments_read))


def figures_of(found: DocumentLosses, segments_read: Sequence[int]) -> Figures:
    """Compute mean losses with 95% intervals, by segments read and by position, from the losses of each document.

    Args:
        found: losses of each document.
        segments_read: lower bounds of the table's rows, as numbers of segments read before a token, ascending; each row
            reaches up to the next.
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
    """Compute rows of the printed table of losses from the losses of all documents.

    Args:
        found: losses of each document.
        places: for each row its bounds, and the segments of a document and parts of a segment that it covers.
    """

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
    """Return whether replacing the memory raises the loss significantly, and by at least 0.010 nats per token.

    Args:
        cost: increase of the loss, in nats per token, with its 95% interval.
    """
    return cost.mean >= WORTH_IT and cost.low > 0


def described(cost: Interval, unit: str = " nats") -> str:
    """Format by how much replacing the memory raises the loss, such as ``0.120 nats [0.100, 0.140]``.

    Args:
        cost: increase of the loss, in nats per token, with its 95% interval.
        unit: text behind the number.
    """
    return f"{cost.mean:z.3f}{unit} [{cost.low:z.3f}, {cost.high:z.3f}]"
