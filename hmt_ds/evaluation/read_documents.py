"""Compute the losses of held-out documents on all ranks.

Every segment is read with its document's own memories. To measure what the memories contribute, a segment can also be
read by the same weights with another document's memories, and with none
(:func:`hmt_ds.memory.boundaries.memories_instead`).
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from hmt_ds.distributed.process_group import all_reduce_sum
from hmt_ds.evaluation.losses import DocumentLosses
from hmt_ds.memory import MemoryState, SegmentOutput, Window
from hmt_ds.memory.boundaries import Instead
from hmt_ds.parallel.protocols import Reader

PARTS = 8  # of a segment, for losses by position
Reading = Literal["own"] | Instead


def document_losses(
    reader: Reader,
    held_out: Iterable[tuple[Window, Tensor]],
    documents: int,
    depth: int,
    instead: Sequence[Instead] = (),
) -> DocumentLosses:
    """Compute the losses of held-out documents, together on all ranks; each rank calls it with its own rows.

    Args:
        reader: the model in DeepSpeed's engine, or on a pipeline.
        held_out: consecutive segments of this rank's rows (windows), each with the index of each segment's document
            ``[rows, segments]``; equally many windows on all ranks.
        documents: number of documents.
        depth: number of segments of a document whose losses are kept; later segments are dropped.
        instead: other memories to read each segment with once more: ``swapped`` (another document's), ``none``.

    Returns:
        The summed loss in nats and the number of tokens by document, segment and part of a segment, for the segment's
        own memories and for each other reading; the same on all ranks.
    """
    readings: list[Reading] = ["own", *instead]
    parts = min(PARTS, reader.settings.segment_length)
    # the last document and the last segment take what is empty or too deep
    sums = torch.zeros(len(readings), 2, documents + 1, depth + 1, parts, dtype=torch.float64)
    state: MemoryState | None = None
    index: Tensor | None = None
    for window, numbers in held_out:
        for n, (output, after) in enumerate(reader.read(window, state, instead=instead, by_token=True)):
            state = after
            index = torch.where(window.starts[:, n], 0, 0 if index is None else index + 1)
            if reader.reports:
                by_part = parts_of(output, window, n, readings, parts)
                sums[:, :, numbers[:, n], index.clamp(max=depth)] = by_part
    losses, tokens = all_reduce_sum(sums.to(reader.device)).cpu()[:, :, :documents, :depth].numpy().swapaxes(0, 1)
    scored = [(i, name) for i, name in enumerate(readings) if name == "own" or tokens[i].any()]
    return DocumentLosses(
        reader.settings.segment_length,
        losses={name: losses[i] for i, name in scored},
        tokens={name: tokens[i] for i, name in scored},
    )


def parts_of(output: SegmentOutput, window: Window, n: int, readings: Sequence[Reading], parts: int) -> Tensor:
    """Sum the losses of a segment over equal parts of the segment.

    Args:
        output: the model's output for the segment.
        window: the segments of all rows.
        n: index of the segment, from 0.
        readings: names of the memories that the segment was read with: ``own``, then ``swapped`` or ``none``.
        parts: number of equal parts of the segment.

    Returns:
        Summed nats (index 0) and weights of labels (1), ``[readings, 2, rows, parts]``, on the CPU.
    """
    rows = len(window.starts)
    counted = window.label_weights(n).double().expand(len(readings), rows, -1).clone()
    if "swapped" in readings:
        counted[readings.index("swapped"), window.neighbours(n) == torch.arange(rows)] = 0
    losses = output.loss[None] if output.loss_instead is None else torch.cat([output.loss[None], output.loss_instead])
    losses = torch.where(counted > 0, losses.double().cpu(), 0)
    length = losses.shape[2]
    place = torch.arange(length) * parts // length
    both = torch.stack([losses, counted], dim=1)
    return both.new_zeros(*both.shape[:3], parts).index_add_(3, place, both)
