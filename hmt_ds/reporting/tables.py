"""Tables in the terminal."""

from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
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
    """The resolved recipe, as YAML."""
    text = yaml.safe_dump(values, sort_keys=False)
    console = Console()
    console.print(Syntax(text, "yaml", background_color="default") if console.is_terminal else text, highlight=False)
