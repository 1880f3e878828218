"""Check that texts are UTF-8 and leave out blank ones, a batch at a time; find a file's first unreadable line."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hmt_ds.data.errors import DataError, NoDocumentsError
from hmt_ds.data.file_kinds import FoundFiles
from hmt_ds.data.json_rows import parse
from hmt_ds.data.row_places import RowPlaces
from hmt_ds.data.unpack import unpacked

ROWS = 1000  # texts checked at a time
WITH_LINES = ("text", "json", "csv")  # builders of files that have lines
ADVICE = "convert it, as with `iconv -f latin1 -t utf8`"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the marks that begin it


def filled_rows(documents: Dataset, place: RowPlaces) -> np.ndarray:
    """Return the indices of the documents whose text is neither blank nor missing, `[filled documents]` int64.

    Args:
        documents: Data set with the column `text`.
        place: Finds the file and line of a document, for errors.

    Raises:
        DataError: A text is not UTF-8 (with its file and line, if known), or all texts are blank.
    """
    kept, first = [], 0
    for texts in _batches(documents, "text"):
        _check_utf8(texts, first, place)
        kept.append(np.asarray(pc.fill_null(pc.match_substring_regex(texts, r"\S"), False)))
        first += len(texts)
    keep = np.concatenate(kept) if kept else np.zeros(0, dtype=bool)
    if not keep.any():
        raise NoDocumentsError(
            f"{place.source} holds no documents: all {len(keep)} texts are blank or missing; name a source (or "
            "text_field) with text"
        )
    return np.flatnonzero(keep)


def check_texts(documents: Dataset, place: RowPlaces) -> None:
    """Check that all texts of a data set are UTF-8.

    Args:
        documents: Data set with any columns.
        place: Finds the file and line of a document, for errors.

    Raises:
        DataError: A text is not UTF-8, with its file and line, if known.
    """
    for column in documents.column_names:
        first = 0
        for values in _batches(documents, column):
            _check_utf8(values, first, place)
            first += len(values)


def has_absent(documents: Dataset, column: str) -> bool:
    """Return whether a column of a data set has missing (null) values.

    Args:
        documents: The data set.
        column: Name of the column.
    """
    return any(values.null_count for values in _batches(documents, column))


def why_unreadable(builder: str, file: Path) -> str | None:
    """Find the first line of a file that is not UTF-8 or not JSON, and describe it with its line number, for an error.

    Args:
        builder: Kind of the file; only `text`, `json` and `csv` files have lines.
        file: The file, not compressed.

    Returns:
        The description, or None if all lines can be read or the file has no lines.
    """
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
                return _why_no_json(file) if whole else f"line {number:,}: JSON parse error: {error}; correct it"
    return None


def where_no_text(found: FoundFiles, field: str) -> str:
    """Find the first line of a source's JSON Lines files in which a field does not hold text.

    Args:
        found: The files of the source.
        field: Name of the field.

    Returns:
        A phrase with type, file and line, to append to an error; empty if there is no such line.
    """
    for file in (file for files in found.builders.get("json", {}).values() for file in files):
        for number, line in enumerate(_lines(unpacked(file)), 1):
            with suppress(RecursionError, ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and not isinstance(value := row.get(field), str | None):
                    return f", but {type(value).__name__} in {file}, line {number:,}"
    return ""


def _batches(documents: Dataset, column: str) -> Iterator[pa.ChunkedArray]:
    """Yield a column, 1,000 rows at a time: all at once would hold the texts of a large source in memory."""
    for batch in documents.select_columns([column]).with_format("arrow").iter(batch_size=ROWS):
        yield batch[column]


def _check_utf8(texts: pa.ChunkedArray, first: int, place: RowPlaces) -> None:
    """Check that texts are UTF-8: the reader of JSON takes any bytes for text, and tokenizing them would fail later.

    Args:
        texts: Values of a column.
        first: Index of the first of them in the data set, for errors.
        place: Finds the places of documents, for errors.

    Raises:
        DataError: A text is not UTF-8, or looks like UTF-16.
    """
    for chunk in texts.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid as error:
            for builder, splits in place.found.builders.items() if place.found else ():
                for file in (file for files in splits.values() for file in files):
                    if reason := why_unreadable(builder, unpacked(file)):
                        raise DataError(f"{file}: {reason}") from None
            within = re.search(r"index (\d+)", str(error))
            which = place(first + int(within[1])) if within else f"{place.source}: a document"
            raise DataError(f"{which} is not UTF-8: {ADVICE}") from None
        _check_zeros(chunk, first, place)
        first += len(chunk)


def _check_zeros(texts: pa.Array, first: int, place: RowPlaces) -> None:
    """Check that texts are not UTF-16 without its byte order mark, which is valid UTF-8 with a zero beside each letter.

    Raises:
        DataError: More than a quarter of a text's bytes are zeros.
    """
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return
    zeros = pc.multiply(pc.count_substring(texts, "\0"), 4)
    if (found := pc.index(pc.greater(zeros, pc.binary_length(texts)), True).as_py()) >= 0:
        advice = ADVICE.replace("latin1", "utf-16le")
        raise DataError(f"{place(first + found)} is full of zeros, as UTF-16 is: {advice}")


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from lines


def _why_no_json(file: Path) -> str | None:
    """Return why a file is not one JSON value, as a phrase for an error; None if it is."""
    try:
        json.loads(file.read_text(encoding="utf-8-sig"))
    except (RecursionError, ValueError) as error:
        return f"JSON parse error: {error}; correct it"
    return None
