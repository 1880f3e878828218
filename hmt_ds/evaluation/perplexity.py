"""Held-out perplexity by segments read, with the memory on and off.

A token is counted under the number of whole segments of its document that were read before its own. With memory off the
same weights read the same tokens, sensory tokens included, without prompts.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hmt_ds.distributed.process_group import add_up
from hmt_ds.memory import IGNORED, MemoryState, Window
from hmt_ds.parallel.zero import ZeroExecutor


@dataclass(frozen=True)
class PerplexityRow:
    """One line of the table.

    Attributes:
        segments_read: at least so many segments came before.
        below: and fewer than so many.
        tokens: how many tokens were scored.
        memory_on: perplexity, exp(sum of losses / tokens).
        memory_off: the same without memory.
    """

    segments_read: int
    below: int
    tokens: int
    memory_on: float
    memory_off: float


def segments_needed(segments_read: list[int]) -> int:
    """How many segments of a document are needed: the last bucket reaches twice as far as it begins."""
    return max(1, 2 * max(segments_read))


def perplexity_by_segments(
    executor: ZeroExecutor, windows: Callable[[], Iterable[Window]], segments_read: list[int]
) -> list[PerplexityRow]:
    """Evaluate on this rank's windows, and add up over ranks.

    Args:
        executor: with the weights to evaluate.
        windows: gives the held-out windows anew each time; equally many on each rank.
        segments_read: ascending; a bucket reaches from each to the next one.
    """
    depth = segments_needed(segments_read)
    on = losses_by_index(executor, windows(), depth, {})
    off = losses_by_index(executor, windows(), depth, {"mode": "backbone"})
    rows = []
    for start, end in zip(segments_read, [*segments_read[1:], depth], strict=True):
        tokens = int(on[1, start:end].sum())
        with_memory, without = (perplexity(float(sums[0, start:end].sum()), tokens) for sums in (on, off))
        rows.append(PerplexityRow(start, end, tokens, with_memory, without))
    return rows


def losses_by_index(executor: ZeroExecutor, windows: Iterable[Window], depth: int, options: dict) -> Tensor:
    """Summed losses and label counts by the segment's number in its document, ``[2, depth]``, over all ranks."""
    sums = torch.zeros(2, depth + 1, dtype=torch.float64)
    state: MemoryState | None = None
    index: Tensor | None = None
    for window in windows:
        for n, (output, after) in enumerate(executor.read(window, state, **options)):
            state = after
            if not executor.reports:
                continue
            index = torch.where(window.starts[:, n], 0, 0 if index is None else index + 1)
            at = index.clamp(max=depth)  # the last column takes what no bucket wants
            sums[0].index_add_(0, at, output.loss.double().cpu())
            sums[1].index_add_(0, at, (window.labels[:, n] != IGNORED).sum(dim=1).double())
    return add_up(sums.to(executor.device)).cpu()[:, :depth]


def perplexity(loss: float, tokens: int) -> float:
    """exp(loss / tokens), inf where that is too large for a float, nan where nothing was scored."""
    return float(torch.tensor(loss / tokens, dtype=torch.float64).exp()) if tokens else math.nan


def as_dicts(rows: list[PerplexityRow]) -> list[dict]:
    """Rows for JSON."""
    return [asdict(row) for row in rows]
