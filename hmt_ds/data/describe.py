"""What the documents of a run are like, in a line."""

import numpy as np
from datasets import Dataset

from hmt_ds.data.tokenize import document_lengths


def describe_tokens(tokens: Dataset, segment_length: int) -> str:
    """Return the number of tokenized documents, their lengths in tokens, and the share of padding, as text."""
    lengths = document_lengths(tokens)
    if not len(lengths):
        return "no documents"
    counts = f"{len(lengths):,} documents, {lengths.sum():,} tokens, {lengths.min():,} to {lengths.max():,} each"
    return f"{counts}; padding is {padding_share(lengths, segment_length):.1%} of all positions"


def padding_share(lengths: np.ndarray, segment_length: int) -> float:
    """Return the share of positions that are padding in one pass over documents: behind the last token of each.

    Rows without a document at the end of a pass are not counted.

    Args:
        lengths: Tokens of each document, `[documents]`, at least one document.
        segment_length: Tokens per segment.
    """
    positions = -(-lengths // segment_length) * segment_length
    return float(1 - lengths.sum() / positions.sum())
