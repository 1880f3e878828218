"""Tables for the terminal: a recipe, the keys of recipes, estimated steps on clusters."""

from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table


def print_recipe(values: dict[str, object]) -> None:
    """Print a resolved recipe as YAML, with one line per innermost section.

    Args:
        values: the recipe as nested dicts.
    """
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=118)
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        print(text, flush=True)


def keys_table(keys: Iterable[tuple[str, Any]]) -> Table:
    """Return a table of keys of the recipe, with type, default and help text.

    Args:
        keys: dotted names and pydantic fields, sections included.
    """
    table = Table("key", "type", "default, meaning", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, field in keys:
        kind = field.annotation
        if hasattr(kind, "__pydantic_fields__"):  # a section
            table.add_row()
            table.add_row(f"[bold]{name}[/]", "", f"[bold]{(kind.__doc__ or '').strip()}[/]")
            continue
        default = "required" if field.is_required() else str(field.default)
        meaning = " ".join((field.description or "").split())
        table.add_row(name, type_name(kind), f"[cyan]{escape(default)}[/]  {escape(meaning)}")
    return table


def keys_markdown(keys: Iterable[tuple[str, Any]]) -> str:
    """Return keys of the recipe as tables in Markdown, one for each section.

    Args:
        keys: dotted names and pydantic fields, sections included.
    """
    sections, rows = dict[str, str](), dict[str, list[str]]()
    for name, field in keys:
        if hasattr(field.annotation, "__pydantic_fields__"):
            sections[name] = " ".join((field.annotation.__doc__ or "").split())
            continue
        default = "required" if field.is_required() else f"`{field.default}`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        row = f"| `{name}` | {type_name(field.annotation).replace('|', 'or')} | {default} | {meaning} |"
        section = name.rpartition(".")[0] or name
        sections.setdefault(section, "")  # one that may be left out, such as data.train
        rows.setdefault(section, []).append(row)
    lines = [
        "# Keys of a recipe",
        "",
        "Written by `hmt-ds keys --markdown`. Any key can follow a command: `--KEY VALUE`.",
    ]
    for name, about in sections.items():
        lines += ["", f"## {name}", "", *([about, ""] if about else [])]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows[name]]
    return "\n".join(lines) + "\n"


def type_name(kind: Any) -> str:
    """Return the name of a type as help texts show it, such as ``int | auto``.

    Args:
        kind: a type annotation, such as ``int | Literal["auto"]``.
    """
    if isinstance(kind, type):
        return kind.__name__
    if get_origin(kind) is Annotated:  # a number with its limits
        return type_name(get_args(kind)[0])
    choices = get_args(kind)
    words = [c if isinstance(c, str) else "none" if c is type(None) else type_name(c) for c in choices]
    joined = " | ".join(words)
    return joined if get_origin(kind) in (Literal, Union, UnionType) else get_origin(kind).__name__


def comparison_table(rows: Iterable[tuple[int, str, Any]], job: Any) -> Table:
    """Return a table of estimated optimizer steps on clusters of several sizes, with ZeRO-1, pipelines and ZeRO-3.

    Columns are seconds, nanoseconds per token, tokens/s per GPU, idle share and GB of memory per GPU.

    Args:
        rows: number of GPUs, name of the method, and a :class:`hmt_ds.planning.compare_job.Estimate`; None if the
            method is not possible.
        job: the options that describe the job, a :class:`hmt_ds.planning.plan_options.CompareOptions`.
    """
    size = f"{job.rows} rows of {job.segments} x {job.segment_length} tokens for each GPU"
    speed = f"{job.rate:g} TFLOP/s, {job.between_nodes:g} GB/s into a node"
    table = Table(title=f"{job.shape}, {size}; {speed}", caption_justify="left")
    table.caption = (
        "ZeRO-1: whole weights and float32 gradient on each GPU. pipeline: the best number of stages, from 2, with "
        "ZeRO-1 over the pipelines. ZeRO-3: all-gathers all weights in every pass; its hooks, which cost more within a "
        "node, are not counted. idle: no matrix products. ns: of the step, per fresh token of all GPUs."
    )
    for column in ("GPUs", "way", "layout", "seconds", "ns/token", "tokens/s/GPU", "idle", "GB/GPU"):
        table.add_column(column, justify="left" if column in ("way", "layout") else "right")
    before = None
    for gpus, way, found in rows:
        if before not in (None, gpus):
            table.add_section()
        number, before = "" if gpus == before else f"{gpus:,}", gpus
        if found is None:
            table.add_row(number, way, "not possible")
        elif not found.fits:
            table.add_row(number, way, "does not fit", "", "", "", "", f"{found.bytes / 1e9:.0f}")
        else:
            nanoseconds = 1e9 / (found.tokens_per_second * gpus)
            figures = (f"{found.seconds:.2f}", f"{nanoseconds:,.0f}", f"{found.tokens_per_second:,.0f}")
            table.add_row(number, way, found.layout, *figures, f"{found.idle:.1%}", f"{found.bytes / 1e9:.0f}")
    return table
