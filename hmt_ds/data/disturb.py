"""Tokenized documents made harder to remember: two that take turns, or one with filler between its parts."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.token_files import is_intact, lock, remove_unfinished, write_batches
from hmt_ds.data.tokenize import FEATURES, WEIGHTED, open_tokens

FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
ROWS = 16  # documents written at a time

Document = tuple[np.ndarray, np.ndarray]  # token ids [tokens] int64, weights [tokens] float32


def interleave(tokens: Dataset, every: int, cache_dir: Path) -> Dataset:
    """Join documents in pairs that take turns, as in the HMT paper's test of topic switching.

    Behind the end of the shorter one follows what is left of the other. Of an odd number the last stays as it is.

    Args:
        tokens: What `tokenize_documents` returned.
        every: Number of tokens until the other document's turn.
        cache_dir: Folder of the token cache.
    """

    def pairs() -> Iterator[Document]:
        documents = read(tokens)
        for first in documents:
            parts = [cut(one, every) for one in (first, next(documents, None)) if one is not None]
            turns = max(len(one) for one in parts)
            yield joined([one[turn] for turn in range(turns) for one in parts if turn < len(one)])

    return written(tokens, pairs, f"interleave {every}", cache_dir, weighted="weights" in tokens.column_names)


def dilate(tokens: Dataset, every: int, tokenizer: PreTrainedTokenizerBase, cache_dir: Path) -> Dataset:
    """Put as many tokens of filler behind every part of a document; they have no weight in the loss.

    Args:
        tokens: What `tokenize_documents` returned.
        every: Number of tokens of a part, and of the filler behind it. Behind the last part there is none.
        tokenizer: The tokenizer of the filler.
        cache_dir: Folder of the token cache.
    """
    words = tokenizer(FILLER, add_special_tokens=False).input_ids
    filler = np.resize(np.asarray(words, dtype=np.int64), every), np.zeros(every, dtype=np.float32)

    def diluted() -> Iterator[Document]:
        for document in read(tokens):
            parts = cut(document, every)
            yield joined([piece for part in parts for piece in (part, filler)][:-1])

    return written(tokens, diluted, f"dilate {every} {words}", cache_dir, weighted=True)


def read(tokens: Dataset) -> Iterator[Document]:
    """Yield documents, each with the weights of its tokens: ones, where the format has none."""
    for row in tokens.with_format("numpy"):
        ids = row["input_ids"]
        yield ids, row["weights"] if "weights" in row else np.ones(len(ids), dtype=np.float32)


def cut(document: Document, size: int) -> list[Document]:
    """Cut a document into parts of `size` tokens; the last may be shorter."""
    ids, weights = document
    return [(ids[at : at + size], weights[at : at + size]) for at in range(0, len(ids), size)]


def joined(parts: list[Document]) -> Document:
    """Join parts to one document."""
    ids, weights = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(weights)


def written(
    tokens: Dataset, documents: Callable[[], Iterator[Document]], name: str, cache_dir: Path, *, weighted: bool
) -> Dataset:
    """Write documents to a file of the token cache, or open the intact one that was made of the same tokens.

    Raises:
        DataError: The cache cannot be written.
    """
    schema = (WEIGHTED if weighted else FEATURES).arrow_schema
    name = f"tokens-{hashlib.sha256(f'{tokens._fingerprint} {name}'.encode()).hexdigest()[:32]}"
    file = cache_dir / f"{name}.arrow"

    def batches() -> Iterator[pa.RecordBatch]:
        left = documents()
        while some := list(itertools.islice(left, ROWS)):
            ids, weights = zip(*some, strict=True)
            columns = {"input_ids": ids, "length": list(map(len, ids)), "weights": weights}
            yield pa.RecordBatch.from_arrays([pa.array(columns[key.name], key.type) for key in schema], schema=schema)

    try:
        if not is_intact(file):
            with lock(cache_dir / f"{name}.lock"):
                remove_unfinished(cache_dir, name)
                if not is_intact(file):
                    write_batches(file, batches(), schema)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"tokens cannot be kept in {cache_dir}: {first_line(error)}") from None
    return open_tokens([file])
