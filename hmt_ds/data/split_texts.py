"""Split text files into documents before each line that matches a separator."""

import hashlib
import itertools
import re

from datasets import Dataset

from hmt_ds.data.errors import DataError


def split_documents(documents: Dataset, separator: str, source: str) -> Dataset:
    """Split texts into documents before each line that matches a separator.

    Args:
        documents: The texts of files, in the column `text`.
        separator: A regular expression, matched per line (re.MULTILINE), such as `^Chapter`.
        source: Name of the source, for errors.

    Raises:
        DataError: The separator is empty, not a regular expression, or matches nowhere.
    """
    if not separator:
        raise DataError("separator '' matches every line: give a regular expression, or leave it out")
    try:
        pattern = re.compile(separator, re.MULTILINE)
    except re.error as error:
        raise DataError(
            f"separator {separator!r} is not a valid regular expression ({error}): correct it, or leave it out"
        ) from error

    def split_batch(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        cuts = ((text, cuts_of(pattern, text)) for text in batch["text"])
        return {"text": [text[start:end] for text, places in cuts for start, end in itertools.pairwise(places)]}

    fingerprint = hashlib.sha256(f"{documents._fingerprint} split before {separator}".encode()).hexdigest()[:32]
    parts = documents.map(split_batch, batched=True, batch_size=16, new_fingerprint=fingerprint)
    if len(parts) == len(documents):
        raise DataError(f"separator {separator!r} matches nowhere in {source}: correct it, or leave it out")
    return parts


def cuts_of(pattern: re.Pattern[str], text: str) -> list[int]:
    """Return the index of the first character of each document in a text, followed by the text's length.

    Args:
        pattern: The separator; a document begins at each match.
        text: The text.
    """
    return [0, *(match.start() for match in pattern.finditer(text)), len(text)]
