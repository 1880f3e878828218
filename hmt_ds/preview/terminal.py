"""Print a preview of training documents in the terminal; without colours, brackets mark what is in the loss."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from hmt_ds.preview.view import Bar, Reading, Run, Shown

MEMORY, SENSORY, IN_LOSS, PARTLY, MASKED = "magenta", "italic cyan", "green", "yellow", "dim"
BAR = 40  # characters of the longest bar


def print_preview(console: Console, summary: str, bars: Sequence[Bar], documents: Sequence[Shown]) -> None:
    """Print a preview of training documents to the terminal.

    Args:
        console: rich's console; if it has no colours, brackets mark the tokens that are in the loss.
        summary: a sentence with the numbers of documents and tokens.
        bars: histogram of document lengths; empty if lengths are not known.
        documents: the documents to show.
    """
    console.print(summary)
    if bars:
        console.print(histogram_table(bars))
    brackets = console.color_system is None
    console.print(legend(set().union(*(document.weights for document in documents)), brackets))
    for document in documents:
        console.print(document_group(document, brackets))


def histogram_table(bars: Sequence[Bar]) -> Table:
    """Return the histogram of document lengths (in segments) as a table, with a bar of blocks in each row.

    Args:
        bars: the rows of the histogram.
    """
    table = Table("segments", "documents", "", box=None, title="lengths of documents", title_justify="left")
    table.columns[1].justify = "right"
    for bar in bars:
        table.add_row(bar.segments, f"{bar.documents:,}", Text("\u2588" * round(BAR * bar.share), style="blue"))
    return table


def legend(weights: set[float], brackets: bool) -> Text:
    """Return a line that says what the colours and brackets of a preview mean.

    Args:
        weights: weights in the loss that occur in the shown documents.
        brackets: whether brackets mark what is in the loss, for lack of colours.
    """
    text = Text("\n")
    text.append("[memory]", MEMORY).append(" learned or remembered embeddings  ")
    text.append("sensory tokens", SENSORY).append(" read again  ")
    if 0 in weights:
        text.append("not in the loss", MASKED).append("  ")
    for weight in sorted(weights - {0}):
        text.append_text(run_text(Run("in the loss", weight), brackets)).append("  ")
    return text


def document_group(document: Shown, brackets: bool) -> RenderableType:
    """Return a training document for the terminal: name and size, and the text of its segments, each below a rule.

    Args:
        document: the document.
        brackets: whether brackets mark what is in the loss, for lack of colours.
    """
    parts: list[RenderableType] = [Text(f"\n{document.name}: {document.size}", style="bold")]
    for reading in document.readings:
        if reading is None:
            shown = sum(one is not None for one in document.readings)
            parts.append(Rule(Text(f"{document.segments - shown:,} more segments"), style="dim", characters="\u00b7"))
        else:
            parts += [Rule(Text(reading.title), align="left", style="dim"), reading_text(reading, brackets)]
    return Group(*parts)


def reading_text(reading: Reading, brackets: bool) -> Text:
    """Return the text of a document's segment, with the names of the memory embeddings in front of and behind it.

    Args:
        reading: the segment.
        brackets: whether brackets mark what is in the loss, for lack of colours.
    """
    text = Text()
    for name in reading.before:
        text.append(f"[{name}]", MEMORY)
    if reading.sensory:
        text.append(reading.sensory, SENSORY).append("\u2502", MEMORY)
    for run in reading.runs:
        text.append_text(run_text(run, brackets))
    for name in reading.behind:
        text.append(f"[{name}]", MEMORY)
    return text


def run_text(run: Run, brackets: bool) -> Text:
    """Return the text of consecutive tokens with the same weight in the loss, in that weight's colour.

    If the weight is neither 0 nor 1, it is printed behind the text.

    Args:
        run: the tokens.
        brackets: whether brackets mark what is in the loss, for lack of colours.
    """
    if run.weight == 0:
        return Text(run.text, MASKED)
    weight = "" if run.weight == 1 else f" x{run.weight:g}"
    text = f"\u27e6{run.text}\u27e7{weight}" if brackets else run.text
    if not brackets and weight:
        text += f"{weight} "
    return Text(text, IN_LOSS if run.weight == 1 else PARTLY)
