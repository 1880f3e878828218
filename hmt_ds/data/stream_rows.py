"""Read the rows of a data source one after the other, from files or over the network, without copying it to this
machine."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, load_dataset

from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.file_kinds import BUILDERS, COMPRESSIONS
from hmt_ds.data.files import find_files
from hmt_ds.data.load_files import BUILDER_OPTIONS, LOAD_ERRORS
from hmt_ds.data.remote import is_remote
from hmt_ds.data.sources import is_saved, load_saved
from hmt_ds.data.unpack import unpacked


class RowStream:
    """Reads the rows of a data source in parts of equally many rows.

    Args:
        source, split, name, revision: The source, as for `read_source`; at an address, all files must be of one kind.
        columns: Columns to read.
        size: Rows of a part.

    Raises:
        DataError: The source cannot be read as a stream.
    """

    def __init__(
        self, source: str, columns: Sequence[str], size: int, split: str, name: str | None, revision: str | None
    ) -> None:
        if not split.isidentifier():
            raise DataError(
                f"split {split!r} is not a whole split, and a stream (data.stream) reads no part of one: name it whole"
            )
        self._keys, self._columns, self._source, self._size = (source, split, name, revision), columns, source, size
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._features: Features | None = None
        self._next = -1
        self._parts: int | None = None

    def read(self, number: int) -> Dataset:
        """Return the rows of one part as a data set; without rows if the source has ended before the part.

        Parts that are read in order are read once; otherwise the source is read from its beginning.

        Args:
            number: Number of the part, from 0.

        Raises:
            DataError: The source cannot be read, or lacks a column.
        """
        try:
            in_order = number == self._next
            if not in_order:
                stream = open_stream(*self._keys)
                self._rows, self._features = iter(stream.skip(number * self._size)), stream.features
            rows = [self._needed(row) for row in itertools.islice(self._rows, self._size)]
        except LOAD_ERRORS as error:
            if isinstance(error, DataError):
                raise
            where = f"rows {number * self._size:,} to {(number + 1) * self._size:,}"
            raise DataError(f"{self._source}: {where} cannot be read: {first_line(error)}") from error
        self._next = number + 1
        if len(rows) < self._size and (rows or in_order):
            self._parts = number + bool(rows)
        known = self._features
        features = Features({column: known[column] for column in self._columns}) if rows and known else None
        return Dataset.from_list(rows, features=features)

    def parts(self) -> int:
        """Return the number of parts that have rows; reads the whole source, unless its end has been read already."""
        if self._parts is None:
            self._parts = -(-sum(1 for _ in open_stream(*self._keys)) // self._size)
        return self._parts

    def _needed(self, row: dict[str, Any]) -> dict[str, Any]:
        for column in self._columns:
            if column not in row:
                raise DataError(f"{self._source} has no column {column!r}; it has: {', '.join(row)}")
        return {column: row[column] for column in self._columns}


def open_stream(source: str, split: str, name: str | None, revision: str | None) -> IterableDataset:
    """Open a data source as a stream of the `datasets` library, which reads rows as they are asked for.

    Args:
        source: File, folder, pattern, address or name on the hub.
        split: Split to read, such as `train`.
        name: The configuration of a hub data set.
        revision: A branch, tag or commit of a hub data set.

    Raises:
        DataError: The source cannot be opened, or its files are of several kinds.
    """
    try:
        if is_remote(source):
            builder, files = kind_of_address(source), {split: [source]}
        elif is_saved(Path(source)):
            return load_saved(Path(source), split).to_iterable_dataset()
        elif found := find_files(source, split):
            if len(found.builders) > 1:
                kinds = " and ".join(found.builders)
                raise DataError(
                    f"{source} holds files of kinds {kinds}, and a stream reads one: name those of one kind"
                )
            builder, splits = next(iter(found.builders.items()))
            files = {name: [str(readable(file)) for file in some] for name, some in splits.items()}
        else:
            return load_dataset(source, name, split=split, revision=revision, streaming=True)
        return load_dataset(builder, data_files=files, split=split, streaming=True, **BUILDER_OPTIONS.get(builder, {}))
    except LOAD_ERRORS as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{source} cannot be read as a stream: {first_line(error)}; check it, or leave data.stream out"
        ) from error


def readable(file: Path) -> Path:
    """Return a file that the `datasets` library can stream: the file itself, or for .zst a decompressed copy."""
    return unpacked(file) if file.suffix.lower() == ".zst" else file


def kind_of_address(source: str) -> str:
    """Return the builder of the `datasets` library (`text`, `json`, ...) for the files at a remote address.

    Args:
        source: The address, such as ``s3://bucket/data/*.jsonl``.

    Raises:
        DataError: The ending of the address names no kind of file.
    """
    path = Path(source)
    suffix = Path(path.stem).suffix if path.suffix.lower() in COMPRESSIONS else path.suffix
    if suffix.lower() not in BUILDERS:
        raise DataError(
            f"{source}: a stream reads files of one kind: name them, such as {source.rstrip('/')}/*.parquet"
        )
    return BUILDERS[suffix.lower()]
