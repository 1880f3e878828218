"""Going on with another number of ranks (``training.elastic``): the rows of the global batch stay as many as they were.

``python -m hmt_ds.training.elastic NODES RANKS_PER_NODE RECIPE ...`` prints on how many of these machines a run can
go on.
"""

import json
import sys
from pathlib import Path

from hmt_ds.checkpoint.files import list_checkpoints
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.process_group import from_rank_0, rank, world_size
from hmt_ds.reporting.progress import print_problems


def main(nodes: int, ranks_per_node: int, recipe_file: str, overrides: list[str]) -> int:
    """Print the number of machines; returns the exit code."""
    try:
        print(usable(load_recipe(recipe_file, overrides), nodes, ranks_per_node))
    except ConfigError as error:
        print_problems(error.problems)
        return 2
    return 0


def usable(recipe: Recipe, nodes: int, ranks_per_node: int) -> int:
    """How many of some machines can share the run's rows.

    Raises:
        ConfigError: if not even one can.
    """
    rows = rows_of_run(recipe)
    for number in range(nodes, 0, -1):
        if rows is None or batch_size(recipe, rows, number * ranks_per_node):
            return number
    machines = f"{nodes} machines of {ranks_per_node} ranks, or fewer,"
    raise ConfigError([f"training.elastic: the run has {rows} rows, which {machines} cannot share"])


def keep_rows(recipe: Recipe) -> Recipe:
    """The recipe with the batch size by which these ranks have as many rows as the run's newest checkpoint.

    Raises:
        ConfigError: if they cannot share them.
    """
    rows = from_rank_0(rows_of_run(recipe) if rank() == 0 else None)
    if not recipe.training.elastic or not isinstance(rows, int):
        return recipe
    if not (size := batch_size(recipe, rows, world_size())):
        raise ConfigError([f"training.elastic: the run has {rows} rows, which {world_size()} ranks cannot share"])
    training = recipe.training.model_copy(update={"batch_size": size})
    return recipe.model_copy(update={"training": training})


def rows_of_run(recipe: Recipe) -> int | None:
    """How many rows the run's newest checkpoint has that says it; None for a new run."""
    if recipe.checkpoint.resume == "never":
        return None
    for checkpoint in list_checkpoints(Path(recipe.training.output) / "checkpoints"):
        try:
            saved = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
            return saved["rows_per_rank"] * (saved["world_size"] // saved["stages"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: resuming will say so
    return None


def batch_size(recipe: Recipe, rows: int, ranks: int) -> int:
    """Rows of each rank, or pipeline; 0 if they cannot be shared."""
    pipelines, left = divmod(ranks, recipe.pipeline.stages)
    return 0 if left or not pipelines or rows % pipelines else rows // pipelines


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
