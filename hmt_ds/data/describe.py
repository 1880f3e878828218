"""Statistics of tokenized documents: their lengths in tokens and the share of padding."""

import hashlib

import numpy as np
from datasets import Dataset

from hmt_ds.data.tokenize import document_lengths
from hmt_ds.data.window_plan import Packing
from hmt_ds.reporting.counted import counted

SAMPLED = 100_000  # documents


def describe_tokens(tokens: Dataset, segment_length: int, packing: Packing | None = None) -> str:
    """Return a line about tokenized documents: their number, their lengths in tokens, and the share of padding.

    Args:
        tokens: Tokenized documents from `tokenize_documents`.
        segment_length: Tokens per segment.
        packing: How documents share segments; None if they do not.
    """
    lengths = document_lengths(tokens)
    if not len(lengths):
        return "no documents"
    counts = f"{counted(len(lengths), 'document')}, {counted(lengths.sum(), 'token')}, "
    counts += f"{lengths.min():,} to {lengths.max():,} each"
    return f"{counts}; padding is {padding_share(lengths, segment_length, packing):.1%} of all positions"


def hash_of_order(lengths: np.ndarray) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of the documents' lengths in their order.

    A run can be resumed only on the same documents in the same order; the hash shows whether they are, without reading
    their tokens.

    Args:
        lengths: Tokens of each document, `[documents]`.
    """
    return hashlib.sha256(lengths.astype("<i8").tobytes()).hexdigest()[:12]


def padding_share(lengths: np.ndarray, segment_length: int, packing: Packing | None = None) -> float:
    """Return the fraction (0 to 1) of token positions that hold padding in one pass over the documents.

    Batch rows that have no document left at the end of the pass are not counted.

    Args:
        lengths: Tokens of each document, `[documents]`, at least one document.
        segment_length: Tokens per segment.
        packing: How documents share segments; None if they do not.
    """
    return 1 - float(lengths.sum()) / (segments_of(lengths, segment_length, packing) * segment_length)


def segments_of(lengths: np.ndarray, segment_length: int, packing: Packing | None = None) -> float:
    """Return the number of segments in one pass over the documents; with packing an estimate from 100,000 documents.

    Args:
        lengths: Tokens of each document, `[documents]`, at least one document.
        segment_length: Tokens per segment.
        packing: How documents share segments; None if they do not.
    """
    if packing is None:
        return int((-(-lengths // segment_length)).sum())
    some = np.random.default_rng(0).permutation(lengths)[:SAMPLED]
    segments = room = 0
    for length in some.tolist():
        room -= packing.gap
        fits = room >= min(length, packing.least)
        left = max(0, length - room) if fits else length
        new = -(-left // segment_length)
        segments += new
        room = new * segment_length - left if new else room - length
    return segments * float(lengths.sum()) / float(some.sum())
