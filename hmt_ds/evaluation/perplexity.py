"""Held-out perplexity by how many segments were read before, with memory on and off.

A token is counted under the number of whole segments of its document that precede its own. With memory off the same
weights read the same tokens, sensory tokens included, without memory prompts.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hmt_ds.distributed.process_group import all_reduce_sum
from hmt_ds.memory import IGNORED, MemoryState, Window
from hmt_ds.memory.settings import Mode
from hmt_ds.parallel.protocols import Reader


@dataclass(frozen=True)
class PerplexityRow:
    """One row of the table of perplexities.

    Attributes:
        segments_read: the fewest segments that came before.
        below: one more than the most segments that came before.
        tokens: tokens scored.
        memory_on: perplexity, exp(sum of losses / tokens).
        memory_off: the same without memory.
    """

    segments_read: int
    below: int
    tokens: int
    memory_on: float
    memory_off: float


def segments_needed(segments_read: list[int]) -> int:
    """Segments of a document that the evaluation reads: the last row reaches twice as far as it begins."""
    return max(1, 2 * max(segments_read))


def perplexity_by_segments(
    reader: Reader, windows: Callable[[], Iterable[Window]], segments_read: list[int]
) -> list[PerplexityRow]:
    """Evaluate on this rank's windows, and sum over the ranks.

    Args:
        reader: has the weights.
        windows: returns the held-out windows from the beginning at each call; the same number on each rank.
        segments_read: where the rows of the table begin, ascending; each reaches up to the next one.
    """
    depth = segments_needed(segments_read)
    on = losses_by_index(reader, windows(), depth)
    off = losses_by_index(reader, windows(), depth, mode="backbone")
    rows = []
    for start, end in zip(segments_read, [*segments_read[1:], depth], strict=True):
        tokens = int(on[1, start:end].sum())
        with_memory, without = (perplexity(float(sums[0, start:end].sum()), tokens) for sums in (on, off))
        rows.append(PerplexityRow(start, end, tokens, with_memory, without))
    return rows


def losses_by_index(reader: Reader, windows: Iterable[Window], depth: int, **mode: Mode) -> Tensor:
    """Summed losses and label counts by the index of a segment in its document, ``[2, depth]``, over all ranks."""
    sums = torch.zeros(2, depth + 1, dtype=torch.float64)
    state: MemoryState | None = None
    index: Tensor | None = None
    for window in windows:
        for n, (output, after) in enumerate(reader.read(window, state, **mode)):
            state = after
            if not reader.reports:
                continue
            index = torch.where(window.starts[:, n], 0, 0 if index is None else index + 1)
            column = index.clamp(max=depth)  # the last column takes the segments that no row of the table wants
            sums[0].index_add_(0, column, output.loss.double().cpu())
            sums[1].index_add_(0, column, (window.labels[:, n] != IGNORED).sum(dim=1).double())
    return all_reduce_sum(sums.to(reader.device)).cpu()[:, :depth]


def perplexity(loss: float, tokens: int) -> float:
    """exp(loss / tokens); inf where that overflows a float, nan where nothing was scored."""
    return float(torch.tensor(loss / tokens, dtype=torch.float64).exp()) if tokens else math.nan


def as_dicts(rows: list[PerplexityRow]) -> list[dict[str, float]]:
    """Rows for JSON."""
    return [asdict(row) for row in rows]
