"""Load the results of a run's evaluations for a report: held-out losses, and answers to questions."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmt_ds.evaluation.compare_retrieval import PREFIX
from hmt_ds.evaluation.files import own_evaluations
from hmt_ds.overview.figures import Curve
from hmt_ds.overview.run_folder import RunFolder


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run; None or empty where the run has none.

    Attributes:
        losses: content of the JSON file of held-out losses: of the newest evaluation that compared the model's own
            memory with others, or else of the newest one.
        answers: content of the JSON file of the newest evaluation by questions.
        picture: path of the newest picture of retrieval weights.
        by_step: held-out perplexity of each evaluation, by optimizer step.
    """

    losses: dict[str, Any] | None
    answers: dict[str, Any] | None
    picture: Path | None
    by_step: dict[int, float]

    @property
    def data(self) -> str | None:
        """SHA-256 of the held-out token ids, in hexadecimal; None without an evaluation of losses."""
        return self.losses["data"]["sha256"] if self.losses else None

    @property
    def perplexity(self) -> str:
        """Held-out perplexity after the first segment, such as ``9.97 (2.300 nats [2.250, 2.350])``; a dash if not
        evaluated.

        In brackets are nats per token with their 95% interval. First segments do not count, because they have no
        memory.
        """
        if self.losses is None or self.losses["remembered"]["nats"][0] is None:
            return "-"
        row = self.losses["remembered"]
        mean, low, high = row["nats"]
        interval = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
        return f"{row['perplexity']:.2f} ({mean:.3f} nats{interval})"


@dataclass(frozen=True)
class Shown:
    """A run that a report compares with others.

    Attributes:
        number: index of the run on the page, from 0, which determines the colour of its curves.
        name: name of the run on the page.
        run: the run's folder.
        evaluations: the run's evaluations.
    """

    number: int
    name: str
    run: RunFolder
    evaluations: Evaluations


def read_evaluations(run: Path) -> Evaluations:
    """Read the evaluations of a run; damaged files are left out.

    Args:
        run: folder of the run.
    """
    losses = {step: content for step, file in own_evaluations(run).items() if (content := content_of(file))}
    answers = {step: file for step, file in own_evaluations(run, PREFIX).items() if content_of(file)}
    newest = answers[max(answers)] if answers else None
    picture = newest.with_suffix(".png") if newest else None
    return Evaluations(
        losses=losses[max(losses)] if losses else None,
        answers=content_of(newest) if newest else None,
        picture=picture if picture and picture.is_file() else None,
        by_step={step: losses[step]["remembered"]["perplexity"] for step in sorted(losses)},
    )


def content_of(file: Path) -> dict[str, Any] | None:
    """Return the content of an evaluation's JSON file; None if the file is damaged or of another version of hmt_ds."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    complete = isinstance(content, dict) and ("remembered" in content or "chance" in content) and "rows" in content
    return content if complete else None


def loss_curve(shown: Shown, content: dict[str, Any], value: str) -> Curve:
    """Return the curve, with 95% intervals, of an evaluation's losses over the number of segments read before.

    Args:
        shown: the run.
        content: content of the evaluation's JSON file.
        value: ``nats`` (loss in nats per token), ``cost_swapped`` or ``cost_none`` (nats per token that the loss rises
            with another document's memory, or with none).
    """
    rows = [row for row in content["rows"] if value in row]
    return Curve(
        shown.number, shown.name, [row["segments_read"] for row in rows], *by_part([row[value] for row in rows])
    )


def answer_curve(shown: Shown, content: dict[str, Any], value: str) -> Curve:
    """Return the curve, with 95% intervals, of answered questions (as fractions) over the number of segments of a
    document.

    Args:
        shown: the run.
        content: content of the JSON file of an evaluation by questions.
        value: ``right`` (fraction of questions answered right) or ``found`` (fraction for which retrieval gave the most
            weight to the right memory).
    """
    rows = [row for row in content["rows"] if row.get(value)]
    lengths = [row["segments"] for row in rows]
    return Curve(shown.number, shown.name, lengths, *by_part([row[value] for row in rows]))


def by_part(values: list[list[float | None]]) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Split a list of intervals into the list of means, the list of low ends, and the list of high ends.

    Args:
        values: mean, low and high end of each interval; None for a missing one.
    """
    means, lows, highs = zip(*values, strict=True) if values else ((), (), ())
    return list(means), list(lows), list(highs)
