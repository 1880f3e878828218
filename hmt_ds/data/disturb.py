"""Make tokenized documents harder to remember: let two documents alternate, or insert filler between parts of one."""

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
    """Join documents in pairs whose parts alternate, as in the HMT paper's test of topic switching.

    When the shorter document of a pair ends, the rest of the longer one follows. With an odd number of documents the
    last one is unchanged.

    Args:
        tokens: Tokenized documents from `tokenize_documents`.
        every: Tokens of one document before the other continues.
        cache_dir: Folder of the token cache, where the result is written.

    Raises:
        DataError: The cache cannot be written.
    """

    def pairs() -> Iterator[Document]:
        documents = read(tokens)
        for first in documents:
            parts = [cut(one, every) for one in (first, next(documents, None)) if one is not None]
            turns = max(len(one) for one in parts)
            yield joined([one[turn] for turn in range(turns) for one in parts if turn < len(one)])

    return written(tokens, pairs, f"interleave {every}", cache_dir, weighted="weights" in tokens.column_names)


def dilate(tokens: Dataset, every: int, tokenizer: PreTrainedTokenizerBase, cache_dir: Path) -> Dataset:
    """Put filler tokens between the parts of each document, as many as a part has; filler has weight 0 in the loss.

    Args:
        tokens: Tokenized documents from `tokenize_documents`.
        every: Tokens per part and per filler. There is no filler behind the last part.
        tokenizer: Tokenizes the filler, a few English sentences.
        cache_dir: Folder of the token cache, where the result is written.

    Raises:
        DataError: The cache cannot be written.
    """
    words = tokenizer(FILLER, add_special_tokens=False).input_ids
    filler = np.resize(np.asarray(words, dtype=np.int64), every), np.zeros(every, dtype=np.float32)

    def diluted() -> Iterator[Document]:
        for document in read(tokens):
            parts = cut(document, every)
            yield joined([piece for part in parts for piece in (part, filler)][:-1])

    return written(tokens, diluted, f"dilate {every} {words}", cache_dir, weighted=True)


def read(tokens: Dataset) -> Iterator[Document]:
    """Yield each document's token ids and loss weights, `[tokens]` each; weights are 1 if the data set has none.

    Args:
        tokens: Tokenized documents from `tokenize_documents`.
    """
    for row in tokens.with_format("numpy"):
        ids = row["input_ids"]
        yield ids, row["weights"] if "weights" in row else np.ones(len(ids), dtype=np.float32)


def cut(document: Document, size: int) -> list[Document]:
    """Cut a document into parts of `size` tokens; the last part may be shorter.

    Args:
        document: Token ids and loss weights, `[tokens]` each.
        size: Tokens per part.
    """
    ids, weights = document
    return [(ids[at : at + size], weights[at : at + size]) for at in range(0, len(ids), size)]


def joined(parts: list[Document]) -> Document:
    """Concatenate parts (pairs of token ids and weights, `[tokens]` each) into one document."""
    ids, weights = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(weights)


def written(
    tokens: Dataset, documents: Callable[[], Iterator[Document]], name: str, cache_dir: Path, *, weighted: bool
) -> Dataset:
    """Write generated documents to a file of the token cache, or open the file if it exists already and is intact.

    Args:
        tokens: The tokenized documents that the generated ones are made from; part of the file's fingerprint.
        documents: Yields the generated documents as token ids and loss weights; called only if they must be written.
        name: How the documents are generated, such as `interleave 512`; part of the file's fingerprint.
        cache_dir: Folder of the token cache.
        weighted: Whether the weights are written too.

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
        raise DataError(
            f"cannot write tokens to {cache_dir}: {first_line(error)}; free space there, or name another cache folder"
        ) from None
    return open_tokens([file])
