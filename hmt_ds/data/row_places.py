"""Where a document of a source comes from: its file, and the line or row in it, for errors."""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    """Finds the places of documents.

    Attributes:
        source: Name of the source.
        found: The files whose rows are the documents; None where rows cannot be told from the files.
        separator: What splits text files into documents.
        rows: The row of each document, `[documents]` int64; None where all rows are documents.
    """

    source: str
    found: FoundFiles | None = None
    separator: str | None = None
    rows: np.ndarray | None = None

    def __call__(self, document: int) -> str:
        """Return the place of a document; reads the files up to it."""
        row = document if self.rows is None else int(self.rows[document])
        for builder, splits in sorted(self.found.builders.items()) if self.found else ():
            for file in (file for files in splits.values() for file in files):
                for place in self._places(builder, unpacked(file)):
                    if row == 0:
                        return f"{file}{place}"
                    row -= 1
        return f"{self.source}: document {document} (the first is 0)"

    def _places(self, builder: str, file: Path) -> Iterable[str]:
        """Return the place of each row in a file, to be put behind the file's name."""
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
    """Yield places such as ", line 3"."""
    return (f", {unit} {number:,}" for number in numbers)


def csv_lines(file: Path) -> Iterator[int]:
    """Yield the line on which each row of a .csv file begins, from the one behind the names on."""
    csv.field_size_limit(MOST_LETTERS)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader, begin, names = csv.reader(lines), 1, True
        for row in reader:
            if row and not names:
                yield begin
            names, begin = names and not row, reader.line_num + 1


def count_arrow(file: Path) -> int:
    """Return the number of rows of an Arrow file or stream."""
    with pa.memory_map(str(file)) as content:
        try:
            return pa.ipc.open_stream(content).read_all().num_rows
        except pa.ArrowInvalid:
            return pa.ipc.open_file(content).read_all().num_rows
