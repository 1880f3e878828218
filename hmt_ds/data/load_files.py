"""Load files with the `datasets` library; say in one line which file cannot be read and why."""

import glob
import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from pandas.errors import EmptyDataError, ParserError

from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.file_kinds import FoundFiles
from hmt_ds.data.json_rows import json_rows, read_json
from hmt_ds.data.text_checks import has_absent, why_unreadable
from hmt_ds.data.unpack import unpacked

# utf-8-sig reads UTF-8 with and without a byte order mark: no document should begin with one. pandas
# would take the document "NA" of a .csv file for a missing one.
BUILDER_OPTIONS: dict[str, dict[str, Any]] = {
    "text": {"sample_by": "document", "encoding": "utf-8-sig"},
    "csv": {"keep_default_na": False, "encoding": "utf-8-sig"},
}
# What `datasets` raises for a file, a name, a split or a script that it cannot load; StopIteration: an empty JSON file.
LOAD_ERRORS = (DatasetsError, OSError, RuntimeError, ValueError, StopIteration, EOFError)
NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")  # what `datasets` says of it


def load_found(
    found: FoundFiles, source: str, split: str, fields: Sequence[str], *, is_text: bool
) -> dict[str, Dataset]:
    """Load the rows of a data source's files.

    Args:
        found: The files to read.
        source: Name of the source, for errors.
        split: Split to load, as the `datasets` library takes it, such as `train` or `train[:10%]`.
        fields: Fields that rows must have; other fields may be dropped.
        is_text: Whether there is a single field, which must hold text.

    Returns:
        The rows of all files of one kind as a data set, by kind: `text`, `json`, `csv`, `parquet` or `arrow`.

    Raises:
        DataError: A file cannot be read, files have different columns, or `split` selects a part (`train[:10%]`)
            although files are of several kinds.
    """
    if len(found.builders) > 1 and "[" in split:
        kinds = " and ".join(found.builders)
        raise DataError(
            f"split {split!r} takes a part, but {source} holds files of kinds {kinds}: name files of one kind"
        )
    rows = {}
    for builder, splits in sorted(found.builders.items()):
        try:
            rows[builder] = load_files(builder, splits, split)
        except DataError as error:
            if not isinstance(error.__cause__, DatasetGenerationError):
                raise
            try:
                with _quiet():
                    rows[builder] = _load_fields(builder, splits, split, fields, is_text)
            except LOAD_ERRORS as again:
                raise again if isinstance(again, DataError) and builder == "json" else error from None
    return rows


def _load_fields(
    builder: str, splits: dict[str, list[Path]], split: str, fields: Sequence[str], is_text: bool
) -> Dataset:
    """Load only the needed fields of files whose other fields have different types.

    Raises:
        Exception: An error of the `datasets` library: the files cannot be read like this either.
    """
    if builder == "parquet":
        return load_files(builder, splits, split, columns=list(fields))
    if builder == "json" and "[" not in split:
        return read_json([file for files in splits.values() for file in files], fields, is_text=is_text)
    raise ValueError(f"files of kind {builder} with split {split!r} can only be read whole: do not name columns")


def load_files(builder: str, splits: dict[str, list[Path]], split: str, columns: list[str] | None = None) -> Dataset:
    """Load the rows of files of one kind with the `datasets` library.

    Args:
        builder: Kind of the files: `text`, `json`, `csv`, `parquet` or `arrow`.
        splits: The files, by split.
        split: Split to load, such as `train` or `train[:10%]`.
        columns: Columns to load, only for `parquet`; None for all.

    Raises:
        DataError: A file cannot be read (with its line, if it has lines), has no rows, or files have different columns.
    """
    files = [file for some in splits.values() for file in some]
    patterns = {name: [_pattern(unpacked(file)) for file in some] for name, some in splits.items()}
    options = {"data_files": patterns, "split": split, **BUILDER_OPTIONS.get(builder, {})}
    if columns:
        options["columns"] = columns
    # the cache of `datasets` knows a file by its modification time, which rsync -t, tar and cp -p keep
    states = [(state.st_size, state.st_ctime_ns) for state in map(Path.stat, files)]
    options["name"] = f"files-{hashlib.sha256(str(states).encode()).hexdigest()[:16]}"
    for file in files if builder == "csv" else []:
        _check_fields(file)
    with suppress(*LOAD_ERRORS), _quiet():
        return load_dataset(builder, **options)
    try:
        with _quiet():  # the cache may be what is damaged
            return load_dataset(builder, **options, download_mode="force_redownload")
    except LOAD_ERRORS as error:
        if len(files) > 1:
            raise _why_not_together(builder, files) from error
        reason = (
            "it is empty: leave it out" if isinstance(error, StopIteration) else first_line(error.__cause__ or error)
        )
        if any(words in reason for words in NO_ROWS):
            reason = f"it has no rows{f' in {split}' if '[' in split else ''}: leave it out"
        reason = why_unreadable(builder, unpacked(files[0])) or reason
        raise DataError(f"cannot read {files[0]} as {builder}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log lines of the `datasets` library within the ``with`` block; its errors are still raised."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_fields(file: Path) -> None:
    """Check that the first row of a .csv file has no more fields than the header.

    pandas would take the first field of such rows for the row's name, and shift every column by one. It refuses later
    rows with too many fields by itself.

    Raises:
        DataError: The first row has more fields than the header.
    """
    with suppress(EmptyDataError, UnicodeDecodeError, OSError):  # said where all is read
        try:
            pd.read_csv(unpacked(file), header=None, nrows=2, dtype=str, encoding="utf-8-sig")
        except ParserError as error:
            if "Expected" in str(error):
                more = "its rows have more fields than its first line: put quotes around text with commas"
                raise DataError(f"cannot read {file} as csv: {more}") from None


def _pattern(file: Path) -> str:
    """Return a glob pattern that matches one file: the `datasets` library takes brackets in a path for a pattern."""
    # in what it takes for a pattern it does not follow links to folders
    return glob.escape(str(file.resolve() if glob.has_magic(str(file)) else file))


def _why_not_together(builder: str, files: list[Path]) -> DataError:
    """Return the error for files of different columns, which names the first file that differs and how.

    Raises:
        DataError: One of the files cannot be read even alone.
    """
    first, *others = (load_files(builder, {"train": [file]}, "train").features for file in files)
    file, features = next(((f, o) for f, o in zip(files[1:], others, strict=True) if o != first), (files[-1], first))
    here, there = (
        ", ".join(f"{name} ({dtype_name(kind)})" for name, kind in own.items() if other.get(name) != kind)
        or "nothing else"
        for own, other in ((features, first), (first, features))
    )
    return DataError(
        f"cannot read {len(files)} {builder} files together: {file} has {here}, but {files[0]} has {there}; give them "
        "the same columns"
    )


def dtype_name(feature: Any) -> str:
    """Return the name of a column's type, such as `string`, `int64` or `List`.

    Args:
        feature: The type, as the `datasets` library gives it.
    """
    return str(getattr(feature, "dtype", type(feature).__name__))


def check_every_file(documents: Dataset, fields: list[str], found: FoundFiles) -> None:
    """Check that every JSON file has each needed field in some row: otherwise all its texts would silently be missing.

    Args:
        documents: The rows of all JSON files.
        fields: Names of the needed fields.
        found: The files.

    Raises:
        DataError: A file has no row with one of the fields.
    """
    files = [file for some in found.builders["json"].values() for file in some]
    absent = [field for field in fields if field in documents.column_names and has_absent(documents, field)]
    for file in files if absent else []:
        missing, first = set(absent), dict[str, Any]()
        for _, row in json_rows(unpacked(file)):
            first = first or row
            missing -= row.keys()
            if not missing:
                break
        else:
            field = next(field for field in absent if field in missing)
            raise DataError(
                f"{file} has no field {field!r} in any row; the first row has: {', '.join(first)}. Add the field, or "
                "leave the file out"
            )
