"""The sections of a report: recipes, metrics, events and checkpoints of the runs, side by side."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from hmt_ds.config.recipe_yaml import write_yaml
from hmt_ds.overview.evaluation_sections import answers, held_out
from hmt_ds.overview.evaluations import Shown
from hmt_ds.overview.figures import Curve, curves, is_smoothed, rank_map
from hmt_ds.overview.page import Folded, Picture, Section, Table
from hmt_ds.overview.planned import planned_table
from hmt_ds.overview.status import Status
from hmt_ds.reporting.counted import counted

MANY = 40  # rows of a table of events; of more, the last ones are shown
# metric, label, whether the mean is drawn, whether the axis is logarithmic
METRICS = (
    ("loss", "loss (nats per token)", True, False),
    ("learning_rate", "learning rate", False, False),
    ("gradient_norm", "gradient norm", True, True),
    ("tokens_per_second", "tokens/s per rank", True, False),
    ("peak_memory_gib", "peak memory of rank 0 (GiB)", False, False),
    ("recall_distance", "segments back that are recalled", True, False),
    ("recall_loss", "loss of the recall (nats)", True, False),
)


def sections_of(runs: Sequence[Shown]) -> list[Section]:
    """Return all sections of a report's page; some may be empty.

    Args:
        runs: the runs that the report compares.
    """
    makers = (summary, training, held_out, answers, speed, events, checkpoints, recipes, environments)
    return [make(runs) for make in makers]


def summary(runs: Sequence[Shown]) -> Section:
    """Return the section of a report that sums up the runs: a table with a column for each run.

    Args:
        runs: the runs that the report compares.
    """
    facts = [dict(facts_of(shown)) for shown in runs]
    names = list(dict.fromkeys(name for found in facts for name in found))
    table = Table(["", *(shown.name for shown in runs)], [[n, *(found.get(n, "-") for found in facts)] for n in names])
    return Section("Summary", tables=[table])


def facts_of(shown: Shown) -> Iterator[tuple[str, str]]:
    """Yield pairs of title and text about a run, such as ``steps`` and ``80 of 100``, for the table at the top of a
    report.

    Args:
        shown: the run.
    """
    run, rows = shown.run, shown.run.rows
    status = Status(run)
    yield "state", f"{status.state}{status.who()}"
    yield "steps", f"{run.step:,} of {run.steps:,}"
    if losses := [row["loss"] for row in rows if row.get("loss") is not None]:
        last = losses[-10:]
        yield "training loss", f"{losses[0]:.3f} to {sum(last) / len(last):.3f}"
    found = shown.evaluations
    if found.losses:
        yield "held-out perplexity", found.perplexity
        yield "verdict", found.losses.get("verdict") or "-"
    if found.answers:
        longest = found.answers["rows"][-1]
        mean, low, high = longest["right"]
        interval = "" if low is None else f" [{low:.1%}, {high:.1%}]"
        yield "questions right", f"{mean:.1%}{interval} in documents of {longest['segments']} segments"
    if seconds := [row["seconds"] for row in rows if row.get("seconds")]:
        yield "time of its steps", tqdm.format_interval(int(sum(seconds) * run.step / max(1, len(seconds))))
        yield "speed", f"{sum(row['tokens_per_second'] for row in rows) / len(rows):,.0f} tokens/s per rank"
    if memory := [row["peak_memory_gib"] for row in rows if row.get("peak_memory_gib")]:
        yield "peak memory", f"{max(memory):.2f} GiB on rank 0"
    starts = run.events("start")
    if starts:
        yield "restarts", f"{len(starts) - 1}"
    yield "skipped steps", f"{int((rows[-1].get('skipped') or 0) if rows else 0)}"
    yield "warnings", f"{len(run.events('warning'))}" if starts else "-"
    yield "checkpoints", f"{len(run.checkpoints)}"


def training(runs: Sequence[Shown]) -> Section:
    """Return the section of a report with a picture per training metric over optimizer steps, a curve per run.

    Args:
        runs: the runs that the report compares.
    """
    section = Section("Training")
    for metric, label, smooth, log in METRICS:
        found = [curve for shown in runs if (curve := metric_curve(shown, metric))]
        constant = len({value for curve in found for value in curve.y}) < 2
        if found and not (constant and metric.startswith("recall")):  # with mode rmt the last memory is all there is
            mean = "; darker: the mean of some logged steps" if smooth and any(map(is_smoothed, found)) else ""
            picture = curves(found, "optimizer step", label, smooth=smooth, log=log)
            section.pictures.append(Picture(f"{label}{mean}", picture))
    if probed := [curve for shown in runs if (curve := probe_curve(shown)).x]:
        picture = curves(probed, "optimizer step", "nats per token more")
        section.pictures.append(Picture("what other memories cost on windows that are trained on next", picture))
    return section


def probe_curve(shown: Shown) -> Curve:
    """Return a curve over optimizer steps of the nats per token by which another document's memory raised the training
    loss.

    Its points are events of kind ``probe``, for which a run now and then reads its next segments with both memories.

    Args:
        shown: the run.
    """
    found = [event for event in shown.run.events("probe") if event.get("cost") is not None]
    return Curve(shown.number, shown.name, [event["step"] for event in found], [event["cost"] for event in found])


def metric_curve(shown: Shown, metric: str) -> Curve | None:
    """Return the curve of a training metric over optimizer steps; None if the run has no values of it.

    Args:
        shown: the run.
        metric: name of the metric in metrics.jsonl, such as ``loss``.
    """
    pairs = [(row["step"], row[metric]) for row in shown.run.rows if row.get(metric) is not None]
    return Curve(shown.number, shown.name, *map(list, zip(*pairs, strict=True))) if pairs else None


def speed(runs: Sequence[Shown]) -> Section:
    """Return the section of a report about speed: a map of each rank's seconds per step, and estimates beside
    measurements.

    Args:
        runs: the runs that the report compares.
    """
    section = Section("Ranks and memory")
    for shown in runs:
        compared = shown.run.events("ranks")
        ranks = len(compared[-1]["seconds"]) if compared else 0
        alike = [event for event in compared if len(event["seconds"]) == ranks]
        if ranks > 1:
            picture = rank_map([event["step"] for event in alike], [event["seconds"] for event in alike])
            section.pictures.append(
                Picture(f"{shown.name}: time of each rank's own work on a step; the others wait for a red one", picture)
            )
        if table := planned_table(shown.run):
            section.tables.append(table)
    return section


def events(runs: Sequence[Shown]) -> Section:
    """Return the section of a report with the runs' events: starts, rollbacks, warnings, the end.

    Args:
        runs: the runs that the report compares.
    """
    section = Section("What happened")
    for shown in runs:
        found = [event for event in shown.run.history if event["kind"] not in ("ranks", "checkpoint", "probe")]
        if not found:
            continue
        if len(found) > MANY:
            section.notes.append(f"{shown.name}: the last {MANY} of {len(found)} events.")
        rows = [
            [shown.name, moment(event["time"]), event["kind"], f"{event['step']:,}", told(event)]
            for event in found[-MANY:]
        ]
        section.tables.append(Table(["run", "time", "event", "step", ""], rows))
    return section


def told(event: dict[str, Any]) -> str:
    """Describe an event of a run in a few words, without its kind and time.

    Args:
        event: a line of history.jsonl, with the keys ``kind`` and ``step``; others depend on the kind.
    """
    if event["kind"] == "start":
        found = event.get("environment", {})
        resumed = "resumed, " if event["step"] else ""
        return f"{resumed}{counted(found.get('ranks', 0), 'rank')}, {', '.join(found.get('devices', []))}"
    if "seconds" in event:
        return f"{event['seconds']:.1f} s"
    return str(event.get("text", ""))


def moment(seconds: float) -> str:
    """Format a time, in seconds since 1970, as local date and time of day."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def checkpoints(runs: Sequence[Shown]) -> Section:
    """Return the section of a report with the runs' checkpoints: step, time, size, seconds of saving, and damage.

    Args:
        runs: the runs that the report compares.
    """
    section, rows = Section("Checkpoints"), []
    for shown in runs:
        seconds = {event["step"]: f"{event['seconds']:.1f} s" for event in shown.run.events("checkpoint")}
        for one in shown.run.checkpoints:
            size = f"{one.bytes / 1e6:,.1f} MB"
            intact = one.damage[0] if one.damage else "complete"
            rows.append([shown.name, f"{one.step:,}", moment(one.time), size, seconds.get(one.step, "-"), intact])
    if rows:
        section.tables.append(Table(["run", "step", "written", "size", "took", "files"], rows))
    return section


def recipes(runs: Sequence[Shown]) -> Section:
    """Return the section of a report with the keys in which the recipes differ, and with each whole recipe.

    Args:
        runs: the runs that the report compares.
    """
    section = Section("Recipe")
    flat = [dict(flattened(shown.run.recipe)) for shown in runs]
    keys = list(dict.fromkeys(key for recipe in flat for key in recipe))
    different = [key for key in keys if len({str(recipe.get(key)) for recipe in flat}) > 1]
    if different:
        rows = [[key, *(str(recipe.get(key, "-")) for recipe in flat)] for key in different]
        section.notes.append("Keys in which the recipes differ:")
        section.tables.append(Table(["key", *(shown.name for shown in runs)], rows))
    section.folded = [Folded(f"recipe of {shown.name}", write_yaml(shown.run.recipe)) for shown in runs]
    return section


def flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted keys of nested mappings with their values.

    Args:
        values: the mappings, such as a recipe.
        prefix: text in front of every key.
    """
    for key, value in values.items():
        if isinstance(value, dict) and value and all(isinstance(name, str) for name in value):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def environments(runs: Sequence[Shown]) -> Section:
    """Return the section of a report with versions, machines and devices of each run's newest start.

    Args:
        runs: the runs that the report compares.
    """
    section = Section("Environment")
    found = [(shown.name, starts[-1]["environment"]) for shown in runs if (starts := shown.run.events("start"))]
    if not found:
        return section
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("ranks", lambda one: str(one.get("ranks"))),
        ("devices", lambda one: ", ".join(one.get("devices", []))),
        ("machines", lambda one: ", ".join(f"{host} ({ranks})" for host, ranks in one.get("machines", {}).items())),
        ("CUDA", lambda one: one.get("cuda") or "none"),
        ("python", lambda one: str(one.get("python"))),
        ("hmt_ds", lambda one: str(one.get("hmt_ds"))),
    ]
    packages = list(dict.fromkeys(name for _, one in found for name in one.get("packages", {})))
    rows = [[name, *(show(one) for _, one in found)] for name, show in lines]
    rows += [[name, *(str(one.get("packages", {}).get(name) or "none") for _, one in found)] for name in packages]
    section.tables.append(Table(["", *(name for name, _ in found)], rows))
    return section
