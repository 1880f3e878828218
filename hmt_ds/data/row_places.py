"""Find where a document comes from, for errors: its file, and its line or row in it."""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hmt_ds.data.file_kinds import FoundFiles
from hmt_ds.data.json_rows import has_lines, json_rows
from hmt_ds.data.split_texts import cuts_of
from hmt_ds.data.unpack import unpacked

MOST_LETTERS = 2**31 - 1  # of a field of a .csv file


@dataclass(frozen=True)
class RowPlaces:
    """Finds the file and line (or row) that a document of a data source comes from; called with the document's index.

    Attributes:
        source: Name of the source.
        found: The files whose rows are the documents; None if rows cannot be told from the files.
        separator: Regular expression that splits text files into documents; None if a file is one document.
        rows: Index of the row of each document, `[documents]` int64; None if each row is a document.
    """

    source: str
    found: FoundFiles | None = None
    separator: str | None = None
    rows: np.ndarray | None = None

    def of(self, documents: np.ndarray) -> "RowPlaces":
        """Return an object that finds the files and lines of only some of the documents.

        Args:
            documents: Indices of the documents to keep, `[documents]` int64.
        """
        return replace(self, rows=documents if self.rows is None else self.rows[documents])

    def __call__(self, document: int) -> str:
        """Return where a document is, such as "a.jsonl, line 3"; reads the source's files up to it.

        Args:
            document: Index of the document in the source, from 0.
        """
        row = document if self.rows is None else int(self.rows[document])
        for builder, splits in sorted(self.found.builders.items()) if self.found else ():
            for file in (file for files in splits.values() for file in files):
                for place in self._places(builder, unpacked(file)):
                    if row == 0:
                        return f"{file}{place}"
                    row -= 1
        return f"{self.source}: document {document} (the first is 0)"

    def _places(self, builder: str, file: Path) -> Iterable[str]:
        """Yield the place of each row of a file, such as ", line 3", to append to the file's name."""
        if builder == "parquet":
            return numbered("row", range(1, pq.read_metadata(file).num_rows + 1))
        if builder == "arrow":
            return numbered("row", range(1, count_arrow(file) + 1))
        if builder == "json":
            return numbered("line" if has_lines(file) else "row", (number for number, _ in json_rows(file)))
        if builder == "csv":
            return numbered("line", csv_lines(file))
        if self.separator is None:
            return [""]
        text = file.read_text(encoding="utf-8-sig")
        cuts = cuts_of(re.compile(self.separator, re.MULTILINE), text)[:-1]
        return numbered("line", (text.count("\n", 0, cut) + 1 for cut in cuts))


def numbered(unit: str, numbers: Iterable[int]) -> Iterator[str]:
    """Yield text such as ", line 3" for each number, to append to a file's name in an error.

    Args:
        unit: `line` or `row`.
        numbers: Numbers of the lines or rows.
    """
    return (f", {unit} {number:,}" for number in numbers)


def csv_lines(file: Path) -> Iterator[int]:
    """Yield the line number (from 1) on which each row of a .csv file begins; the header is not a row."""
    csv.field_size_limit(MOST_LETTERS)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader, begin, names = csv.reader(lines), 1, True
        for row in reader:
            if row and not names:
                yield begin
            names, begin = names and not row, reader.line_num + 1


def count_arrow(file: Path) -> int:
    """Return the number of rows in an Arrow file, of either kind (IPC file or stream)."""
    with pa.memory_map(str(file)) as content:
        try:
            return pa.ipc.open_stream(content).read_all().num_rows
        except pa.ArrowInvalid:
            return pa.ipc.open_file(content).read_all().num_rows
