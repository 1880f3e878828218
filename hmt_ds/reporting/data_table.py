"""Print what a run will read as a table, with a row for each data source of training documents."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hmt_ds.reporting.counted import counted

WIDTH = 120
QUANTILES = {"10%": 0.1, "50%": 0.5, "90%": 0.9, "most": 1.0}  # of documents, by their number of segments


@dataclass(frozen=True)
class SourceFigures:
    """Numbers of one data source of training documents, for a table.

    Attributes:
        name: the source as the recipe names it.
        files: number of files; None for a saved data set and one of the hub.
        documents: number of documents.
        tokens: number of tokens of all documents.
        segments: 10%, 50%, 90% and 100% quantile of the number of segments of a document.
        padding: fraction (0 to 1) of the positions of the source's segments that are padding.
        share: fraction (0 to 1) of the tokens or documents that the run reads that is from the source.
        passes: how often the run reads the whole source.
        in_loss: fraction (0 to 1) of the source's tokens that have a weight in the loss, estimated from the first
            documents.
        left_out: number of the source's documents that are not read.
    """

    name: str
    files: int | None
    documents: int
    tokens: int
    segments: Sequence[int]
    padding: float
    share: float
    passes: float
    in_loss: float = 1.0
    left_out: int = 0


@dataclass(frozen=True)
class DataFigures:
    """Numbers of all training documents of a run, for a table.

    Attributes:
        sources: numbers of each source.
        mix_by: what the shares count: ``tokens`` or ``documents``.
        steps_per_pass: number of optimizer steps in which all documents could be read once.
        steps: number of optimizer steps of the run.
        cache_bytes: size of the token cache on disk, in bytes.
        cache: folder of the token cache.
        stream: number of rows that the figures count, the first of a stream; None if they count all documents.
    """

    sources: Sequence[SourceFigures]
    mix_by: str
    steps_per_pass: float
    steps: int
    cache_bytes: int
    cache: str
    stream: int | None = None


def data_lines(figures: DataFigures) -> list[str]:
    """Return the table of training data sources as lines of text, then lines about one pass and the token cache.

    Args:
        figures: documents and tokens of the training data, by source.
    """
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(sources_table(figures))
    table = [line.rstrip() for line in text.getvalue().splitlines()]
    documents, tokens = (sum(getattr(one, key) for one in figures.sources) for key in ("documents", "tokens"))
    steps = f"{figures.steps_per_pass:,.1f} optimizer steps; the run has {figures.steps:,}"
    whole = f"one pass     {counted(documents, 'document')}, {counted(tokens, 'token')} in about {steps}"
    if figures.stream:
        whole = f"stream       of its first {figures.stream:,} rows: {whole.removeprefix('one pass').strip()}"
    return [*table, whole, f"token cache  {size(figures.cache_bytes)} in {figures.cache}"]


def sources_table(figures: DataFigures) -> Table:
    """Return a table with a row for each data source of training documents.

    Args:
        figures: numbers of all training documents.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("\nsource", overflow="fold", ratio=1)
    first, *others = QUANTILES
    segments = [f"segments\n{first}", *(f"\n{name}" for name in others)]
    dropped = ["left\nout"] if any(one.left_out for one in figures.sources) else []
    answers = ["in the\nloss"] if any(one.in_loss < 1 for one in figures.sources) else []
    names = ["files", "documents", *dropped, "tokens", *answers, *segments, "padding"]
    names += [f"share of\n{figures.mix_by}", "passes"]
    for name in names:
        table.add_column(name if "\n" in name else f"\n{name}", justify="right", no_wrap=True)
    for one in figures.sources:
        files = "" if one.files is None else f"{one.files:,}"
        numbers = [files, f"{one.documents:,}", *(f"{one.left_out:,}" for _ in dropped), f"{one.tokens:,}"]
        numbers += [f"{one.in_loss:.1%}" for _ in answers]
        numbers += [f"{number:,}" for number in one.segments]
        table.add_row(escape(one.name), *numbers, f"{one.padding:.1%}", f"{one.share:.1%}", f"{one.passes:,.2f}")
    return table


def size(number: float) -> str:
    """Format a number of bytes with a decimal unit, such as ``1.5 GB``.

    Args:
        number: the number of bytes.
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"
