"""Find special tokens of a tokenizer that are written out in documents, such as </s> in a page of HTML."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.row_places import RowPlaces

ROWS = 1000  # documents looked at in one go


def special_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the ids of a tokenizer's special tokens, `[tokens]` int64."""
    return np.array([number for number, token in tokenizer.added_tokens_decoder.items() if token.special], np.int64)


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a regular expression that matches a tokenizer's special tokens; None if it has none or reads them as plain
    text.

    Args:
        tokenizer: The tokenizer.
    """
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not names or getattr(tokenizer, "split_special_tokens", False):
        return None
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def why_special(documents: Dataset, tokenizer: PreTrainedTokenizerBase, place: RowPlaces) -> str | None:
    """Return a warning about documents in whose text special tokens such as `</s>` are written out; None if there are
    none.

    Args:
        documents: Rows of any format.
        tokenizer: The tokenizer that will read them.
        place: Finds the file and line of a document, for the warning.
    """
    pattern = special_pattern(tokenizer)
    rows = [] if pattern is None else list(_rows_with(documents, pattern))
    if not rows or pattern is None:
        return None
    first = next(match for text in texts_in(documents[rows[0]]) if (match := re.search(pattern, text)))
    count = "1 document has" if len(rows) == 1 else f"{len(rows):,} documents have"
    return (
        f"{count} special tokens of the tokenizer in the text, first {first[0]!r} in {place(rows[0])}, and they are "
        "read as these tokens: set special_tokens to text to read them as text, or to token if they are meant"
    )


def _rows_with(documents: Dataset, pattern: str) -> Iterator[int]:
    """Yield the indices of the documents in which a regular expression matches any text."""
    for first in range(0, len(documents), ROWS):
        batch = documents.with_format("arrow")[first : first + ROWS]
        if any(_matches(column, pattern) for chunked in batch.columns for column in chunked.chunks):
            for row in range(first, first + len(batch)):
                if any(re.search(pattern, text) for text in texts_in(documents[row])):
                    yield row


def _matches(values: pa.Array, pattern: str) -> bool:
    """Return whether a regular expression matches any text in a column, also in lists and structures within it."""
    if pa.types.is_struct(values.type):
        return any(_matches(field, pattern) for field in values.flatten())
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return _matches(values.flatten(), pattern)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return bool(pc.any(pc.match_substring_regex(values, pattern)).as_py())
    return False


def texts_in(value: Any) -> Iterator[str]:
    """Yield all strings in a row, also those in lists and fields within it, such as a conversation's messages.

    Args:
        value: The row, or a value in it.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts_in(one)
