"""Compare the answers of several runs to the same questions: `hmt-ds compare` of runs with data.retrieval."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from hmt_ds.config.config_error import ConfigError, collected
from hmt_ds.evaluation.bootstrap import Interval
from hmt_ds.evaluation.files import own_evaluations
from hmt_ds.reporting.evaluation_tables import WIDTH

PREFIX = "retrieval_"


@dataclass(frozen=True)
class Answers:
    """A run's results on questions about generated documents.

    Attributes:
        run: name of the run.
        documents: SHA-256 of the settings and seed that determine the documents.
        chance: fraction (0 to 1) of right answers of a model that guesses.
        right: fraction (0 to 1) of right answers with its 95% interval, by the number of segments of the documents.
    """

    run: str
    documents: str
    chance: float
    right: dict[int, Interval]


def is_retrieval(run: Path) -> bool:
    """Return whether a run's evaluations hold answers to questions (data.retrieval) instead of losses.

    Args:
        run: folder of the run.
    """
    return run.is_dir() and bool(own_evaluations(run, PREFIX)) and not own_evaluations(run)


def compare_retrieval(runs: Sequence[Path], names: Sequence[str], picture: Path) -> int:
    """Print and draw how many questions each run answers right.

    Args:
        runs: folders of the runs.
        names: name of each run.
        picture: picture file to write.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: with a line for each run that cannot be compared, or if the picture cannot be written.
    """
    problems: list[str] = []
    answers = []
    for run, name in zip(runs, names, strict=True):
        with collected(problems):
            answers.append(read_answers(run, name))
    if not problems:
        pairs = list(zip(runs, answers, strict=True))
        problems = [line for run, other in pairs[1:] if (line := mismatch(*pairs[0], run, other))]
    if problems:
        raise ConfigError(problems)
    from hmt_ds.reporting.retrieval import answers_table, plot_answers  # matplotlib takes a second

    Console(width=None if sys.stdout.isatty() else WIDTH).print(answers_table(answers))
    longest = max(answers[0].right)
    shares = ", ".join(f"{one.run} {one.right[longest][0]:.1%}" for one in answers)
    print(f"answered right in documents of {longest} segments: {shares}; chance {answers[0].chance:.1%}")
    try:
        plot_answers(answers, picture)
    except OSError as error:
        raise ConfigError(
            [f"--picture: {picture} cannot be written ({error.strerror}): name a file where you may write"]
        ) from None
    print(f"picture     {picture}")
    return 0


def mismatch(first_run: Path, first: Answers, run: Path, other: Answers) -> str | None:
    """Return an error line if the answers of a run cannot be compared with those of the first run; None if they can.

    Args:
        first_run: path of the first run.
        first: answers of the first run.
        run: path of the other run.
        other: answers of the other run.
    """
    if other.documents != first.documents:
        advice = "evaluate both with the same data.retrieval, memory.segment_length, evaluation.documents and tokenizer"
        return f"{run}: was asked other questions than {first_run}; {advice}"
    if other.right.keys() != first.right.keys():
        lengths = f"{list(other.right)} segments, {first_run} in documents of {list(first.right)}"
        return f"{run}: was asked in documents of {lengths}; evaluate both with the same evaluation.retrieval_segments"
    return None


def read_answers(run: Path, name: str) -> Answers:
    """Read a run's newest answers to the questions of its own recipe.

    Args:
        run: folder of the run.
        name: name of the run in tables.

    Raises:
        ConfigError: there are no answers, or the file is damaged.
    """
    if not run.is_dir():
        raise ConfigError([f"{run}: no such run: name the folder of a run (training.output)"])
    files = own_evaluations(run, PREFIX)
    if not files and own_evaluations(run):
        raise ConfigError(
            [
                f"{run}: has held-out losses, but other runs have answers to questions (data.retrieval): compare runs "
                "of one kind"
            ]
        )
    if not files:
        raise ConfigError([f"{run}: has no evaluation; make one with hmt-ds evaluate {run}"])
    file = files[max(files)]
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        # JSON has null where a single document gives no interval
        shares = [[math.nan if value is None else float(value) for value in row["right"]] for row in content["rows"]]
        right = {int(row["segments"]): Interval(*share) for row, share in zip(content["rows"], shares, strict=True)}
        return Answers(name, content["data"]["sha256"], float(content["chance"]), right)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError([f"{file}: damaged ({reason}): evaluate again, with hmt-ds evaluate {run}"]) from None
