"""Find the padding of batches, and move it to the end of each row.

Padding at the end of a row changes nothing for a causal model. Left padding would shift the row's segments, so rows are
aligned to the left before they are split, and their logits are moved back afterwards.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmt_ds.memory.segments import IGNORED, Window, split_document


@dataclass(frozen=True)
class Alignment:
    """A map between the columns of padded rows and the columns of the same rows aligned to the left.

    Attributes:
        real: ``[batch, columns]`` bool, False on padding.
        order: ``[batch, columns]``, for each column of the aligned rows the column that its value comes from: tokens
            first, then padding.
    """

    real: Tensor
    order: Tensor

    @classmethod
    def of(cls, real: Tensor) -> "Alignment":
        """Build the map that moves each row's tokens to the left, in the same order, and its padding to the end.

        Args:
            real: ``[batch, columns]`` bool, False on padding.
        """
        return cls(real, (~real).long().argsort(dim=1, stable=True))

    def columns(self, first: int) -> Tensor:
        """Map each column of a padded batch to the column of its token once rows are moved to the left without padding.

        Padding is mapped to the last token before it. Returns ``[batch, columns - first]`` int64.

        Args:
            first: first column of the padded rows to map.
        """
        return (self.real.long().cumsum(dim=1) - 1).clamp(min=0)[:, first:]

    def align(self, values: Tensor, pad: int) -> Tensor:
        """Align rows to the left: move the values at tokens to the front, and write ``pad`` behind them.

        Args:
            values: ``[batch, columns]``, such as token ids.
            pad: value to write at padding.
        """
        return values.masked_fill(~self.real, pad).gather(1, self.order)


def find_trailing_pads(
    input_ids: Tensor, labels: Tensor | None, pad: int | None, special: Collection[int | None]
) -> Tensor | None:
    """Find the padding of a batch that has no attention mask.

    The padding id may also occur in text, so padding is only a run of the id at the end of a row, without labels, and
    only if no text begins or ends with the id. Where ``pad_token_id`` equals the end-of-text id, as in many fine-tuned
    models, a text that ends with the id would otherwise lose its last token.

    Args:
        input_ids: ``[batch, tokens]``.
        labels: ``[batch, tokens]``, -100 without a label; a position with a label is text. None without labels.
        pad: ``pad_token_id`` of the configuration; None if there is none.
        special: ids that begin or end a text.

    Returns:
        ``[batch, tokens]`` bool, False on padding; None if there is no padding.
    """
    if pad is None or pad in special:
        return None
    pads = input_ids == pad
    if labels is not None:
        pads &= labels == IGNORED
    trailing = pads.long().flip(1).cumprod(dim=1).flip(1).bool()
    return ~trailing if bool(trailing.any()) else None


def split_rows(input_ids: Tensor, labels: Tensor | None, length: int, alignment: Alignment | None) -> Window:
    """Split the documents of a batch, without their padding, into segments of equal length.

    Args:
        input_ids: ``[batch, tokens]``.
        labels: ``[batch, tokens]``, not shifted; labels of padding are ignored. None without labels.
        length: number of tokens of a segment.
        alignment: map between padded and left-aligned rows; None without padding.
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
