"""Check texts for UTF-8 and leave out blank ones, a batch at a time; say which line of a file cannot be read."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hmt_ds.data.errors import DataError
from hmt_ds.data.file_kinds import FoundFiles
from hmt_ds.data.json_rows import parse
from hmt_ds.data.unpack import unpacked

ROWS = 1000  # texts checked at a time
WITH_LINES = ("text", "json", "csv")  # builders of files that have lines
ADVICE = "convert it, as with `iconv -f latin1 -t utf8`"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the marks that begin it


def drop_blank(documents: Dataset, source: str, found: FoundFiles | None) -> Dataset:
    """Return documents without those that are blank or absent.

    Args:
        documents: data set with the column "text".
        source: name of the source, for errors.
        found: its files, in which to find a line that is not UTF-8.

    Raises:
        DataError: if a text is not UTF-8, or all are blank.
    """
    kept, first = [], 0
    for texts in _batches(documents, "text"):
        _check_utf8(texts, first, source, found)
        kept.append(np.asarray(pc.fill_null(pc.match_substring_regex(texts, r"\S"), False)))
        first += len(texts)
    keep = np.concatenate(kept) if kept else np.zeros(0, dtype=bool)
    if not keep.any():
        raise DataError(f"{source} holds no documents: all {len(keep)} texts are blank or absent")
    return documents if keep.all() else documents.select(np.flatnonzero(keep))


def check_texts(documents: Dataset, source: str, found: FoundFiles | None) -> Dataset:
    """Return documents of any columns; arguments and errors are those of `drop_blank`, but blank ones are kept."""
    for column in documents.column_names:
        first = 0
        for values in _batches(documents, column):
            _check_utf8(values, first, source, found)
            first += len(values)
    return documents


def has_absent(documents: Dataset, column: str) -> bool:
    """Tell whether a column has absent values."""
    return any(values.null_count for values in _batches(documents, column))


def why_unreadable(builder: str, file: Path) -> str | None:
    """Return the first line of a file that cannot be read, and why; None if all can, or if it has no lines."""
    if builder not in WITH_LINES:
        return None
    for number, line in enumerate(_lines(file), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            advice = ADVICE.replace("latin1", "utf-16") if number == 1 and line.startswith(UTF_16) else ADVICE
            return f"line {number:,} is not UTF-8 ({error}): {advice}"
        if builder == "json" and text.strip():
            try:
                parse(text)
            except ValueError as error:
                whole = number == 1 and isinstance(error, json.JSONDecodeError)
                return _why_no_json(file) if whole else f"line {number:,}: JSON parse error: {error}"
    return None


def where_no_text(found: FoundFiles, field: str) -> str:
    """Return the first line of JSON Lines whose field holds another kind of value than text, to append to an error."""
    for file in (file for files in found.builders.get("json", {}).values() for file in files):
        for number, line in enumerate(_lines(unpacked(file)), 1):
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and not isinstance(value := row.get(field), str | None):
                    return f", but {type(value).__name__} in {file}, line {number:,}"
    return ""


def _batches(documents: Dataset, column: str) -> Iterator[pa.ChunkedArray]:
    """Yield a column a batch at a time: all at once would hold the texts of a large source in memory."""
    for batch in documents.select_columns([column]).with_format("arrow").iter(batch_size=ROWS):
        yield batch[column]


def _check_utf8(texts: pa.ChunkedArray, first: int, source: str, found: FoundFiles | None) -> None:
    """The reader of JSON takes any bytes for text, and they would fail where they are tokenized."""
    for chunk in texts.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid as error:
            for builder, splits in found.builders.items() if found else ():
                for file in (file for files in splits.values() for file in files):
                    if reason := why_unreadable(builder, unpacked(file)):
                        raise DataError(f"{file}: {reason}") from None
            within = re.search(r"index (\d+)", str(error))
            which = f"document {first + int(within[1])}" if within else "a document"
            raise DataError(f"{source}: {which} (the first is 0) is not UTF-8: {ADVICE}") from None
        _check_zeros(chunk, first, source)
        first += len(chunk)


def _check_zeros(texts: pa.Array, first: int, source: str) -> None:
    """UTF-16 without its mark is UTF-8 too, with a zero beside each letter."""
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return
    zeros = pc.multiply(pc.count_substring(texts, "\0"), 4)
    if (found := pc.index(pc.greater(zeros, pc.binary_length(texts)), True).as_py()) >= 0:
        advice = ADVICE.replace("latin1", "utf-16le")
        raise DataError(f"{source}: document {first + found} (the first is 0) is full of zeros, as UTF-16 is: {advice}")


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from lines


def _why_no_json(file: Path) -> str | None:
    """Return why a file that is no JSON Lines is no JSON either; None if it is."""
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        return f"JSON parse error: {error}"
    return None
