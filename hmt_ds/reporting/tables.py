"""Tables in the terminal."""

from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table


def perplexity_table(rows: Sequence[Any], title: str) -> Table:
    """Held-out perplexity by segments read.

    Args:
        rows: with ``segments_read``, ``below``, ``tokens``, ``memory_on``, ``memory_off``.
    """
    table = Table(title=title)
    for column in ("segments read", "tokens scored", "memory on", "memory off", "change"):
        table.add_column(column, justify="right")
    for row in rows:
        last = row.below - 1
        read = str(row.segments_read) if last == row.segments_read else f"{row.segments_read} to {last}"
        figures = ["-", "-", "-"]
        if row.tokens:
            change = f"{100 * (row.memory_on / row.memory_off - 1):+.2f}%"
            figures = [f"{row.memory_on:.2f}", f"{row.memory_off:.2f}", change]
        table.add_row(read, f"{row.tokens:,}", *figures)
    return table


def print_recipe(values: dict[str, Any]) -> None:
    """The resolved recipe, as YAML with a line for each innermost section."""
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=118)
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        print(text, flush=True)


def keys_table(keys: Iterable[tuple[str, Any]]) -> Table:
    """Every key of a recipe.

    Args:
        keys: names and pydantic fields, sections included.
    """
    table = Table("key", "type", "default, meaning", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for name, field in keys:
        kind = field.annotation
        if hasattr(kind, "model_fields"):
            table.add_row()
            table.add_row(f"[bold]{name}[/]", "", f"[bold]{(kind.__doc__ or '').strip()}[/]")
            continue
        default = "required" if field.is_required() else str(field.default)
        table.add_row(name, type_name(kind), f"[cyan]{escape(default)}[/]  {escape(field.description or '')}")
    return table


def type_name(kind: Any) -> str:
    """A type as a person would write it."""
    if isinstance(kind, type):
        return kind.__name__
    if get_origin(kind) is Annotated:  # a number with its limits
        return type_name(get_args(kind)[0])
    choices = get_args(kind)
    words = [c if isinstance(c, str) else "none" if c is type(None) else type_name(c) for c in choices]
    joined = " | ".join(words)
    return joined if get_origin(kind) in (Literal, Union, UnionType) else get_origin(kind).__name__
