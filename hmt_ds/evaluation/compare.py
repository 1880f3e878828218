"""Compare several trained runs on the same held-out tokens: `hmt-ds compare`.

Runs may have different segment lengths: losses are compared on the same tokens, matched by position in the document.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console

from hmt_ds.config.config_error import ConfigError, collected
from hmt_ds.evaluation.bootstrap import Interval, interval, mean_intervals, resampled_sums
from hmt_ds.evaluation.compare_options import CompareOptions
from hmt_ds.evaluation.compare_retrieval import compare_retrieval, is_retrieval
from hmt_ds.evaluation.figures import segments_needed
from hmt_ds.evaluation.files import Evaluation, find_evaluation, read_evaluation
from hmt_ds.reporting.counted import counted
from hmt_ds.reporting.evaluation_tables import WIDTH, percent, runs_table

Span = tuple[int, int]  # places of tokens in their document, from the first to before the last


@dataclass(frozen=True)
class RunRow:
    """The loss of one run on the tokens in a span of positions of all documents, compared with the first run.

    Attributes:
        run: name of the run.
        first, below: the span's first position in a document, and the position after its last.
        first, below: the span's first position in a document, and the position after its last.
        tokens: number of scored tokens.
        nats: mean loss per token, in nats.
        difference: loss per token minus that of the first run, in nats on the same tokens; None for the first run.
        share: fraction of the gap in loss between the first and the last run that the run closes; None if there may be
            no gap.
    """

    run: str
    first: int
    below: int
    tokens: int
    nats: Interval
    difference: Interval | None
    share: Interval | None


def compare(runs: Sequence[Path], options: CompareOptions) -> int:
    """Print and draw how the held-out losses (or answers to questions) of runs differ from those of the first run.

    Args:
        runs: folders of runs, or JSON files of evaluations; at least two, or three with ``--gap``.
        options: options of ``hmt-ds compare``.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: with a line for each run that cannot be compared, or if the picture cannot be written.
    """
    if len(runs) < 2 + options.gap:
        needed = "--gap: compares at least three runs" if options.gap else "at least two runs are compared"
        raise ConfigError([f"{needed}, got {len(runs)}: name another one"])
    if any(is_retrieval(run) for run in runs):
        if options.gap:
            raise ConfigError(
                ["--gap: compares losses, and the runs have answers to questions (data.retrieval): leave it out"]
            )
        return compare_retrieval(runs, names_of(runs), options.picture)
    evaluations = read_all(runs)
    tables = compared(evaluations, names_of(runs))
    data = evaluations[0].data
    title = f"held-out loss of {len(runs)} runs by tokens read before, with 95% intervals over {data.documents:,} "
    title += f"documents of {Path(data.source).name}"
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(runs_table(tables, title, gap=options.gap))
    first, *others = tables[-1]
    print("\n".join(sentence(row, first.run, gap=options.gap) for row in others))
    draw(tables, options.picture)
    return 0


def draw(tables: Sequence[Sequence[RunRow]], picture: Path) -> None:
    """Draw the differences in loss between runs into a picture file.

    Args:
        tables: for each span of positions, the loss of each run.
        picture: the file to write.

    Raises:
        ConfigError: the file cannot be written.
    """
    from hmt_ds.reporting.plots import plot_runs  # matplotlib takes a second, and errors should not

    try:
        plot_runs(tables[:-1] or tables, picture)
    except OSError as error:
        raise ConfigError(
            [f"--picture: {picture} cannot be written ({error.strerror}): name a file where you may write"]
        ) from None
    print(f"picture     {picture}")


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's name, or its whole path if several folders have the same name."""
    count = Counter(run.name for run in runs)
    return [run.name if count[run.name] == 1 and run.name else str(run) for run in runs]


def read_all(runs: Sequence[Path]) -> list[Evaluation]:
    """Read the evaluations of several runs, and check that all are of the same tokens.

    Args:
        runs: folders of runs, or JSON files of evaluations.

    Raises:
        ConfigError: with a line for each run without an evaluation, or with one of other tokens.
    """
    problems: list[str] = []
    found = []
    for run in runs:
        with collected(problems):
            found.append(read_evaluation(find_evaluation(run)))
    if not problems:
        pairs = list(zip(runs, found, strict=True))
        problems = [line for run, other in pairs[1:] if (line := mismatch(*pairs[0], run, other))]
    if problems:
        raise ConfigError(problems)
    return found


def mismatch(first_run: Path, first: Evaluation, run: Path, other: Evaluation) -> str | None:
    """Return an error line if the evaluation of a run cannot be compared with that of the first run; None if it can.

    Args:
        first_run: path of the first run.
        first: evaluation of the first run.
        run: path of the other run.
        other: evaluation of the other run.
    """
    if other.data.tokenizer != first.data.tokenizer:
        return f"{run}: tokenizer {other.data.tokenizer}, but {first_run} {first.data.tokenizer}; leave one out"
    if other.data.sha256 != first.data.sha256:
        advice = "evaluate both with the same data.validation and evaluation.documents, and as far into each document "
        advice += "(2 x the last of evaluation.segments_read x memory.segment_length)"
        return f"{run}: has read {described(other)}, but {first_run} {described(first)}; {advice}"
    length, borders, starts = other.losses.segment_length, borders_of(first), places_of(other)
    end = length * other.losses.losses["own"].shape[1]
    if odd := [border for border in borders if border not in starts and border < end]:
        where = f"token {odd[0]:,}, where a row of {first_run} begins, is within an eighth of a segment of {length:,}"
        return f"{run}: {where} tokens; evaluate {first_run} with other evaluation.segments_read"
    if any((scored(other, span) != scored(first, span)).any() for span in pairwise(borders)):
        return f"{run}: has scored other tokens than {first_run}; evaluate both with the same data.validation"
    return None


def described(evaluation: Evaluation) -> str:
    """Describe the data of an evaluation for an error: numbers of documents and tokens, and the start of their hash."""
    data = evaluation.data
    longest = segments_needed(evaluation.segments_read) * evaluation.losses.segment_length
    counts = f"{counted(data.documents, 'document')}, {counted(data.tokens, 'token')}, at most {longest:,} of each"
    return f"{counts}, SHA-256 {data.sha256[:12]} ({Path(data.source).name})"


def borders_of(evaluation: Evaluation) -> list[int]:
    """Return the token positions in a document at which the rows of a table of losses begin, then the last row's end.

    Args:
        evaluation: the evaluation whose losses the table shows.
    """
    counts = [*evaluation.segments_read, segments_needed(evaluation.segments_read)]
    return [count * evaluation.losses.segment_length for count in counts]


def places_of(evaluation: Evaluation) -> np.ndarray:
    """Return the position in a document at which each part of each segment begins, ``[segments * parts]`` int64.

    An evaluation stores losses by part: each segment is cut into equally many parts.

    Args:
        evaluation: the evaluation.
    """
    _, segments, parts = evaluation.losses.losses["own"].shape
    length = evaluation.losses.segment_length
    within = -(-length * np.arange(parts) // parts)
    return (length * np.arange(segments)[:, None] + within).ravel()


def within(evaluation: Evaluation, values: np.ndarray, span: Span) -> np.ndarray:
    """Sum an evaluation's losses or numbers of tokens over a span of positions of each document.

    Args:
        evaluation: the evaluation that the values come from.
        values: summed nats or numbers of tokens, ``[documents, segments, parts]``.
        span: the first position in a document, and the position after the last.

    Returns:
        The sum of each document, ``[documents]``.
    """
    places = places_of(evaluation)
    return values.reshape(len(values), -1)[:, (places >= span[0]) & (places < span[1])].sum(axis=1)


def scored(evaluation: Evaluation, span: Span) -> np.ndarray:
    """Return the number of scored tokens of each document in a span of positions, ``[documents]``.

    Args:
        evaluation: the evaluation.
        span: the first position in a document, and the position after the last.
    """
    return within(evaluation, evaluation.losses.tokens["own"], span)


def compared(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[list[RunRow]]:
    """Compare the losses of runs on several spans of positions: those of the first run's table, and finally all tokens.

    Spans without tokens are left out.

    Args:
        evaluations: evaluation of each run.
        names: name of each run.

    Returns:
        For each span of positions, the loss of each run.

    Raises:
        ConfigError: no token was scored.
    """
    borders = borders_of(evaluations[0])
    spans = [span for span in [*pairwise(borders), (borders[0], borders[-1])] if scored(evaluations[0], span).any()]
    if not spans:
        raise ConfigError(
            [f"{names[0]}: no document has {borders[0]:,} tokens, so no token was scored: evaluate longer documents"]
        )
    return [rows_of(evaluations, names, span) for span in dict.fromkeys(spans)]


def rows_of(evaluations: Sequence[Evaluation], names: Sequence[str], span: Span) -> list[RunRow]:
    """Compare the losses of runs on the tokens in one span of positions.

    Args:
        evaluations: evaluation of each run.
        names: name of each run.
        span: the first position in a document, and the position after the last.

    Returns:
        A row for each run.
    """
    sums = np.stack([within(one, one.losses.losses["own"], span) for one in evaluations], axis=1)
    counts = np.repeat(scored(evaluations[0], span)[:, None], len(names), axis=1)
    more = sums - sums[:, :1]
    nats, differences, shares = mean_intervals(sums, counts), mean_intervals(more, counts), shares_of(-more)
    return [
        RunRow(name, *span, int(counts[:, 0].sum()), nats[i], differences[i] if i else None, shares[i])
        for i, name in enumerate(names)
    ]


def shares_of(gains: np.ndarray) -> list[Interval] | list[None]:
    """Return which fraction of the last run's gain over the first run each run achieves, with its 95% interval.

    Args:
        gains: summed nats of the first run minus those of each run, ``[documents, runs]``.

    Returns:
        A value for each run; None for all runs if the last run's gain may be 0.
    """
    drawn, total = resampled_sums(gains), gains.sum(axis=0)
    if len(gains) < 2 or not interval(total[-1], drawn[:, -1]).low > 0:
        return [None] * gains.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares, drawn_shares = total / total[-1], drawn / drawn[:, -1:]
    return [interval(float(share), column) for share, column in zip(shares, drawn_shares.T, strict=True)]


def sentence(row: RunRow, first: str, *, gap: bool) -> str:
    """Return a sentence on how much better or worse than the first run another run is.

    Args:
        row: the other run's loss on all tokens.
        first: name of the first run.
        gap: whether to add the fraction of the gap between the first and the last run that the run closes.
    """
    assert row.difference is not None
    mean, low, high = row.difference
    if not (low > 0 or high < 0):
        known = f"{mean:z.3f} nats [{low:z.3f}, {high:z.3f}]" if low <= high else "one document gives no interval"
        return f"{row.run} cannot be told from {first}: {known}"
    low, high = sorted((abs(low), abs(high)))
    share = f", {percent(row.share)} of the gap" if gap and row.share else ""
    word = "worse" if mean > 0 else "better"
    return f"{row.run} is {abs(mean):z.3f} nats {word} than {first} [{low:z.3f}, {high:z.3f}]{share}"
