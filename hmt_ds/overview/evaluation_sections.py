"""The sections of a report about evaluations: held-out losses, and answers to questions."""

from collections.abc import Sequence
from typing import Any

from hmt_ds.overview.evaluations import Shown, answer_curve, loss_curve
from hmt_ds.overview.figures import Curve, curves, embedded, intervals
from hmt_ds.overview.page import Picture, Section, Table


def held_out(runs: Sequence[Shown]) -> Section:
    """Return the section of a report with held-out losses (nats per token), by the number of segments read before.

    It also shows how much each run's loss rises without memory, or with another document's. Empty if no run was
    evaluated.

    Args:
        runs: the runs that the report compares.
    """
    section = Section("Held-out losses")
    found = [(shown, shown.evaluations.losses) for shown in runs if shown.evaluations.losses]
    if not found:
        return section
    for shown, content in found:
        if content.get("verdict"):
            section.notes.append(f"{shown.name}: {content['verdict']}.")
    if len({shown.evaluations.data for shown, _ in found}) > 1:
        section.notes.append("The runs were evaluated on different documents: their losses cannot be compared.")
    draw: list[tuple[str, str, str, float | None]] = [
        ("nats", "nats per token", "nats per token", None),
        ("cost_swapped", "nats per token more", "what another document's memory costs", 0.0),
        ("cost_none", "nats per token more", "what no memory costs", 0.0),
    ]
    for value, label, what, line in draw:
        drawn = [loss_curve(shown, content, value) for shown, content in found]
        if any(curve.x for curve in drawn):
            drawn = [curve for curve in drawn if curve.x]
            caption = f"{what}, by segments read before, with 95% intervals over documents"
            section.pictures.append(Picture(caption, intervals(drawn, "segments read before", label, line=line)))
    over_time = [Curve(shown.number, shown.name, *steps_of(shown.evaluations.by_step)) for shown, _ in found]
    if any(len(curve.x) > 1 for curve in over_time):
        picture = curves(over_time, "optimizer step", "perplexity")
        section.pictures.append(Picture("held-out perplexity during training", picture))
    head = ["segments read before", *(shown.name for shown, _ in found)]
    section.tables.append(Table(head, loss_rows([content for _, content in found])))
    return section


def steps_of(values: dict[int, float]) -> tuple[list[float], list[float | None]]:
    """Split a dict of values by optimizer step into a list of steps and a list of values, as a plotted curve needs
    them."""
    return [float(step) for step in values], list(values.values())


def loss_rows(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table of held-out losses.

    Args:
        found: content of each run's evaluation file; its ``rows`` have the keys ``segments_read``, ``below`` and
            ``nats``.

    Returns:
        Cells of text. The first one of a row is how many segments of a document were read before (``3``, or ``4 to 7``
        for a range), the others are nats per token with their 95% interval, one for each run, or a dash.
    """
    keys = sorted({(row["segments_read"], row["below"]) for content in found for row in content["rows"]})
    rows = []
    for key in keys:
        cells = []
        for content in found:
            row = next((one for one in content["rows"] if (one["segments_read"], one["below"]) == key), None)
            cells.append(with_interval(row["nats"], "{:.3f}") if row else "-")
        rows.append([f"{key[0]}" if key[1] == key[0] + 1 else f"{key[0]} to {key[1] - 1}", *cells])
    return rows


def with_interval(value: Sequence[float | None], form: str) -> str:
    """Format a value with its 95% interval, such as ``2.310 [2.250, 2.371]``; a dash if the value is missing.

    Args:
        value: mean, low end and high end; None for a missing one.
        form: format of each number for ``str.format``, such as ``{:.3f}``.
    """
    mean, low, high = value
    if mean is None:
        return "-"
    if low is None or high is None:
        return form.format(mean)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"


def answers(runs: Sequence[Shown]) -> Section:
    """Return the section of a report about questions whose answers are in memory.

    Drawn over the number of segments of a document: the fraction of questions answered right, and the fraction for
    which retrieval gave the most weight to the right memory. The section is empty if no run was asked questions.

    Args:
        runs: the runs that the report compares.
    """
    section = Section("Questions and recall")
    found = [(shown, shown.evaluations.answers) for shown in runs if shown.evaluations.answers]
    if not found:
        return section
    chance = found[0][1]["chance"]
    for value, label in (("right", "share of questions answered right"), ("found", "share of memories found")):
        drawn = [curve for shown, content in found if (curve := answer_curve(shown, content, value)).x]
        if drawn:
            picture = intervals(drawn, "segments of a document", label, line=chance if value == "right" else None)
            dashed = f"; dashed: chance, {chance:.1%}" if value == "right" else ""
            section.pictures.append(Picture(f"{label}, with 95% intervals over documents{dashed}", picture))
    lengths = sorted({row["segments"] for _, content in found for row in content["rows"]})
    shares = [
        {row["segments"]: with_interval(row["right"], "{:.1%}") for row in content["rows"]} for _, content in found
    ]
    table = [[f"{length}", *(share.get(length, "-") for share in shares)] for length in lengths]
    section.tables.append(Table(["segments", *(shown.name for shown, _ in found)], table))
    for shown, _ in found:
        if picture_file := shown.evaluations.picture:
            caption = f"{shown.name}: its answers; in mode hmt also which memory each segment of a document recalled"
            section.pictures.append(Picture(caption, image=embedded(picture_file)))
    return section
