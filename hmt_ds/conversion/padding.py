"""Padded batches: which positions hold tokens, and rows with their pads moved to the end.

A causal model reads a row whose pads are at the end as it reads the row alone. Left padding would shift the row's
segments, so rows are aligned to the left before they are split, and their logits are moved back afterwards.

Shapes: b batch, t positions of the padded rows, v vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmt_ds.memory.segments import IGNORED, Window, split_document


@dataclass(frozen=True)
class Alignment:
    """The map between the columns of padded rows and those of the same rows aligned to the left.

    Attributes:
        real: ``[b, t]`` bool, False on pads.
        order: ``[b, t]``, the position that each column of the aligned rows comes from: tokens first, then pads.
    """

    real: Tensor
    order: Tensor

    @classmethod
    def of(cls, real: Tensor) -> "Alignment":
        """Build the alignment that moves each row's tokens to the left, in the same order, and its pads to the end."""
        return cls(real, (~real).long().argsort(dim=1, stable=True))

    def columns(self, first: int) -> Tensor:
        """Return the aligned columns of all positions from ``first`` on, ``[b, t - first]``."""
        return self.order.argsort(dim=1)[:, first:]

    def align(self, values: Tensor, pad: int) -> Tensor:
        """Move ``[b, t]`` values to their aligned columns, and set those of pads to ``pad``."""
        return values.masked_fill(~self.real, pad).gather(1, self.order)


def find_trailing_pads(
    input_ids: Tensor, labels: Tensor | None, pad: int | None, special: Collection[int | None]
) -> Tensor | None:
    """Find the pads of a batch that comes without an attention mask.

    An id alone does not tell a pad from text, so only what no text contains counts: a run of the pad id at the end of
    a row, without labels, and only if texts do not use that id to begin or end. Where ``pad_token_id`` is the end of
    text, as in many fine-tuned models, a text that ends in it would lose its last token.

    Args:
        input_ids: ``[b, t]``.
        labels: ``[b, t]``; a position with a label is text.
        pad: ``pad_token_id`` of the configuration.
        special: the ids that begin or end a text.

    Returns:
        ``[b, t]`` bool, False on pads; None if there are none.
    """
    if pad is None or pad in special:
        return None
    pads = input_ids == pad
    if labels is not None:
        pads &= labels == IGNORED
    trailing = pads.long().flip(1).cumprod(dim=1).flip(1).bool()
    return ~trailing if bool(trailing.any()) else None


def split_rows(input_ids: Tensor, labels: Tensor | None, length: int, alignment: Alignment | None) -> Window:
    """Split documents into segments of one length, without their pads.

    Args:
        input_ids: ``[b, t]``.
        labels: ``[b, t]``, not shifted yet. Those of pads do not count.
        length: L, tokens of a segment.
        alignment: of padded rows, or None.
    """
    if alignment is not None:
        input_ids = alignment.align(input_ids, 0)
        labels = None if labels is None else alignment.align(labels, IGNORED)
    window = split_document(input_ids, length)
    if labels is not None:
        window = replace(window, labels=split_document(labels, length).labels)
    if alignment is None:
        return window
    begins = torch.arange(len(window), device=input_ids.device) * length
    lengths = (alignment.real.sum(dim=1, keepdim=True) - begins).clamp(0, length)
    starts = lengths == 0  # as everywhere, an empty segment starts a document: nothing is recalled there
    starts[:, 0] = True
    return replace(window, lengths=lengths, starts=starts)
