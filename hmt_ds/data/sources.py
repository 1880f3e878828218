"""Load the documents of a data source (files, folders, saved data sets, the hub) with the `datasets` library."""

import difflib
import glob
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset, load_from_disk
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hmt_ds.data.errors import DataError, NoDocumentsError, RowError, first_line
from hmt_ds.data.file_kinds import BUILDERS, FoundFiles
from hmt_ds.data.files import find_files
from hmt_ds.data.load_files import LOAD_ERRORS, check_every_file, dtype_name, load_found
from hmt_ds.data.named import convert
from hmt_ds.data.row_places import RowPlaces
from hmt_ds.data.settings import DatasetName
from hmt_ds.data.split_texts import split_documents
from hmt_ds.data.text_checks import check_texts, filled_rows, where_no_text
from hmt_ds.data.where import Condition, rows_where

logger = logging.getLogger(__name__)

SHORT, LONG = Value("string"), Value("large_string")


@dataclass(frozen=True)
class SourceDocuments:
    """The documents of a data source, and what was left out of it.

    Attributes:
        documents: One row per document, with the column `text`, or with the columns of another format.
        files: Number of files read; None for a saved data set and one of the hub.
        left_out: A line for each reason why files or documents are left out.
        place: Finds the file and line of a document, given its index.
        dropped: Number of documents that are left out: blank texts, and rows that do not meet the conditions `where`.
    """

    documents: Dataset
    files: int | None
    left_out: tuple[str, ...]
    place: RowPlaces
    dropped: int


def load_documents(source: str, **options: Any) -> Dataset:
    """Load the documents of a data source: the field `documents` of :func:`read_source` with the same arguments."""
    return read_source(source, **options).documents


def read_source(
    source: str,
    *,
    text_field: str = "text",
    columns: Mapping[str, str] | None = None,
    dataset: DatasetName | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    separator: str | None = None,
    where: Mapping[str, Condition] | None = None,
) -> SourceDocuments:
    """Load the documents of a data source, one row per document, in the column `text` or in the columns of another
    format.

    Blank texts are left out.

    Args:
        source: A .txt, .md, .jsonl, .ndjson, .json, .csv, .parquet or .arrow file, also compressed (.gz, .zst); a
            folder of files, read recursively, kind by kind, in the order of their paths; a pattern such as
            ``data/*.jsonl``; a folder written by `save_to_disk`; an address of files, such as ``s3://bucket/data``; or
            the name of a data set on the hub.
        text_field: The column that holds the text.
        columns: For a format other than text: the column's name in the source, by the format's own column name. Rows
            may be blank.
        dataset: Name of the well-known data set whose columns the source has; its rows are converted to its format.
        split: The split of a hub data set, of a saved `DatasetDict`, or of a folder whose files belong to several
            (`train-00000-of-00002.parquet`). Other files have the one split "train", of which `datasets` can take a
            part ("train[:10%]"); a saved `Dataset` is taken whole.
        name: The configuration of a hub data set.
        revision: A branch, tag or commit of a hub data set.
        separator: A regular expression, matched per line (re.MULTILINE): a text file is split before each match, and
            the parts are documents, also the one before the first match. By default a file is one document.
        where: Condition on a column, by the column's name: the value, the list of values or the bounds that a row must
            have there. By default all rows are read.

    Raises:
        DataError: The source is absent, of an unknown kind, unreadable, not UTF-8, empty or without a needed column, or
            an argument does not apply to it.
    """
    found = None if is_saved(Path(source)) else find_files(source, split)
    if is_saved(Path(source)):
        builders = {"saved": load_saved(Path(source), split)}
    elif found:
        fields = [*(columns or {"text": text_field}).values(), *(where or ())]
        builders = load_found(found, source, split, fields, is_text=not columns)
    else:
        builders = {"hub": _load_by_name(source, name, split, revision)}
    if "hub" not in builders:
        _refuse(source, "data sets of the hub", name=name, revision=revision)
    if "text" not in builders or columns:
        _refuse(source, "text files", separator=separator)
    left_out, dropped, rows = found.notes() if found else [], 0, None
    if where:
        whole_size = sum(map(len, builders.values()))
        builders, rows, lines = _choose_rows(builders, where, source)
        left_out, dropped = left_out + lines, whole_size - len(rows)
    parts = _keep_needed(builders, columns, text_field, source, found)
    if separator is not None:
        parts["text"] = split_documents(parts["text"], separator, source)
    whole = _concatenate(list(parts.values()), source)
    # of several splits and of a part of one, `datasets` knows which rows come first
    place = RowPlaces(source, found if split.isidentifier() else None, separator, rows)
    if dataset is not None:
        whole, place = _convert(whole, dataset, place), RowPlaces(source)  # its documents are not the rows of files
    if whole.column_names != ["text"]:
        check_texts(whole, place)
    elif blank := len(whole) - len(filled := filled_rows(whole, place)):
        left_out, dropped = [*left_out, f"{blank:,} blank or absent texts"], dropped + blank
        whole, place = whole.select(filled), place.of(filled)
    for line in left_out:
        logger.info("%s: left out %s", source, line)
    return SourceDocuments(whole, len(found) if found else None, tuple(left_out), place, dropped)


def _refuse(source: str, kind: str, **arguments: str | None) -> None:
    """Raise a DataError for the first argument that has a value, which is for sources of another kind."""
    for key, value in arguments.items():
        if value is not None:
            raise DataError(f"{key} {value!r} is for {kind} only, and {source} is not one: leave it out")


def _choose_rows(
    builders: Mapping[str, Dataset], where: Mapping[str, Condition], source: str
) -> tuple[dict[str, Dataset], np.ndarray, list[str]]:
    """Keep only the rows that meet all conditions.

    Args:
        builders: Rows, by builder of the `datasets` library (or `saved`, `hub`).
        where: Condition on each column: a value, a list of values, or bounds.
        source: Name of the source, for errors.

    Returns:
        The rows by builder, their indices among all rows, `[rows]` int64, and a line for each condition that leaves
        rows out.

    Raises:
        DataError: A column is missing or cannot be compared, or no row is left.
    """
    kept, numbers, lines, first = dict[str, Dataset](), list[np.ndarray](), list[str](), 0
    for builder, rows in builders.items():
        _select_columns(rows, list(where), source)
        chosen, about = rows_where(rows, where, source)
        kept[builder] = rows.select(chosen)
        numbers, lines, first = [*numbers, chosen + first], lines + about, first + len(rows)
    if not sum(map(len, kept.values())):
        raise NoDocumentsError(
            f"where leaves none of the {first:,} rows of {source}: {'; '.join(lines)}. Widen where, or leave it out"
        )
    return kept, np.concatenate(numbers), lines


def _convert(rows: Dataset, dataset: DatasetName, place: RowPlaces) -> Dataset:
    """Convert the rows of a well-known data set to the columns of its format.

    Raises:
        DataError: A row does not have the data set's structure, with its file and line, if known.
    """
    check_texts(rows, place)
    try:
        return convert(rows, dataset)
    except RowError as error:
        raise DataError(f"{place(error.row)}: {error.reason}") from None


def is_saved(path: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of the `datasets` library.

    Args:
        path: The folder.
    """
    return path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists())


def _keep_needed(
    builders: Mapping[str, Dataset],
    columns: Mapping[str, str] | None,
    text_field: str,
    source: str,
    found: FoundFiles | None,
) -> dict[str, Dataset]:
    """Keep only the needed columns of the rows of each builder, and name them as the format does.

    Args:
        builders: Rows, by builder of the `datasets` library (or `saved`, `hub`).
        columns: Columns of the format, each with its name in the source; None for the format text.
        text_field: Name of the column of the text.
        source: Name of the source, for errors.
        found: Its files; None for a source of another kind.

    Raises:
        DataError: A column is missing, or the text column holds no text.
    """
    kept = {}
    for builder, documents in builders.items():
        # text files beside tables have no fields to choose from
        field = "text" if builder == "text" and len(builders) > 1 else text_field
        if found and builder == "json":
            check_every_file(documents, list(columns.values()) if columns else [field], found)
        kept[builder] = (
            _keep_columns(documents, columns, source) if columns else _keep_text(documents, field, source, found)
        )
    return kept


def _concatenate(parts: list[Dataset], source: str) -> Dataset:
    if len(parts) == 1:
        return parts[0]
    if parts[0].column_names == ["text"]:
        return concatenate_datasets([part.cast_column("text", LONG) for part in parts])
    if any(part.features != parts[0].features for part in parts):  # some kinds of files make large strings, others not
        parts = [part.cast(_with_long(part.features)) for part in parts]
    try:
        return concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(
            f"{source} holds files whose columns differ ({first_line(error)}): name files with the same columns"
        ) from None


def _with_long(features: Features) -> Features:
    return Features({name: LONG if kind == SHORT else kind for name, kind in features.items()})


def load_saved(path: Path, split: str) -> Dataset:
    try:
        saved = load_from_disk(str(path))
    except LOAD_ERRORS as error:
        raise DataError(
            f"cannot read the saved data set {path}: {first_line(error)}; save it again, or name another"
        ) from error
    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise DataError(f"the saved data set {path} has no split {split!r}: set split to one of {', '.join(saved)}")
    return saved[split]


def _load_by_name(source: str, name: str | None, split: str, revision: str | None) -> Dataset:
    absent = f"{source!r} is neither a file nor a folder"
    if glob.has_magic(source):
        raise DataError(f"no file matches {source!r}: check the path")
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise DataError(f"{absent}, and it cannot be the name of a data set: check the path") from None
    if Path(source).suffix.lower() in BUILDERS:
        raise DataError(f"{absent}: check the path")
    try:
        return load_dataset(source, name, split=split, revision=revision)
    except LOAD_ERRORS as error:
        reason = first_line(error.__cause__ or error)
        raise DataError(
            f"{absent}, nor a data set that can be loaded from the hub or its cache ({reason}): check the name"
        ) from error


def _select_columns(documents: Dataset, fields: list[str], source: str) -> Dataset:
    there = documents.column_names
    for field in fields:
        if field not in there:
            close = difflib.get_close_matches(field, there, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(
                f"{source} has no column {field!r}; it has: {', '.join(there)}{hint or '; choose one of these'}"
            )
    return documents.select_columns(fields)


def _keep_columns(documents: Dataset, columns: Mapping[str, str], source: str) -> Dataset:
    """Keep only the given columns, and rename them to a format's names (the keys of `columns`)."""
    documents = _select_columns(documents, list(columns.values()), source)
    return documents.rename_columns({field: name for name, field in columns.items() if field != name})


def _keep_text(documents: Dataset, text_field: str, source: str, found: FoundFiles | None) -> Dataset:
    documents = _select_columns(documents, [text_field], source)
    if text_field != "text":
        documents = documents.rename_column(text_field, "text")
    dtype = dtype_name(documents.features["text"])
    if dtype not in ("string", "large_string"):
        where = where_no_text(found, text_field) if found else ""
        raise DataError(
            f"column {text_field!r} of {source} holds {dtype}, not text (string){where}; name another column"
        )
    return documents
