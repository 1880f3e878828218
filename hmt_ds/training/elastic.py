"""Resume on another number of ranks (``training.elastic``) with the same number of rows in the global batch.

``python -m hmt_ds.training.elastic NODES RANKS_PER_NODE RECIPE ...`` prints how many of the NODES a run can use.
"""

import sys
from pathlib import Path

from hmt_ds.checkpoint.files import newest_state
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.process_group import broadcast_object, rank, world_size
from hmt_ds.reporting.progress import print_problems


def main(nodes: int, ranks_per_node: int, recipe_file: str, overrides: list[str]) -> int:
    """Print the number of machines that a run with ``training.elastic`` can use; return the exit code.

    Args:
        nodes: number of machines available.
        ranks_per_node: ranks on each machine.
        recipe_file: path of the recipe.
        overrides: keys of the recipe to change, such as ``["--training.output", "runs/a"]``.
    """
    try:
        print(usable_nodes(load_recipe(recipe_file, overrides), nodes, ranks_per_node))
    except ConfigError as error:
        print_problems(error.problems)
        return 2
    return 0


def usable_nodes(recipe: Recipe, nodes: int, ranks_per_node: int) -> int:
    """Return the largest number of machines, up to ``nodes``, whose ranks can share the global batch equally.

    Args:
        recipe: recipe of the run.
        nodes: number of machines available.
        ranks_per_node: ranks on each machine.

    Raises:
        ConfigError: not even the ranks of one machine can share the global batch equally.
    """
    rows = global_rows(recipe)
    for number in range(nodes, 0, -1):
        if rows is None or batch_size(recipe, rows, number * ranks_per_node):
            return number
    machines = f"{nodes} machines of {ranks_per_node} ranks, or fewer,"
    raise ConfigError(
        [
            f"training.elastic: the global batch of {rows} rows cannot be shared "
            f"equally by {machines}: use a number of ranks that divides it"
        ]
    )


def keep_global_batch(recipe: Recipe) -> Recipe:
    """Return a recipe whose batch size per rank gives the global batch of the run's newest checkpoint.

    If the run has no checkpoint yet, the recipe is returned unchanged.

    Args:
        recipe: the recipe, with ``training.elastic``.

    Raises:
        ConfigError: the ranks cannot share the rows of the global batch equally.
    """
    rows = broadcast_object(global_rows(recipe) if rank() == 0 else None)
    if not recipe.training.elastic or not isinstance(rows, int):
        return recipe
    if not (size := batch_size(recipe, rows, world_size())):
        raise ConfigError(
            [
                f"training.elastic: the global batch of {rows} rows cannot be shared equally "
                f"by {world_size()} ranks: use a number of ranks that divides it"
            ]
        )
    training = recipe.training.model_copy(update={"batch_size": size})
    return recipe.model_copy(update={"training": training})


def global_rows(recipe: Recipe) -> int | None:
    """Return the number of rows of the global batch in a run's newest checkpoint; None if there is no checkpoint.

    Args:
        recipe: recipe of the run.
    """
    if recipe.checkpoint.resume == "never":
        return None
    saved = newest_state(Path(recipe.training.output) / "checkpoints")
    return None if saved is None else saved["rows_per_rank"] * (saved["world_size"] // saved["stages"])


def batch_size(recipe: Recipe, rows: int, ranks: int) -> int:
    """Return the rows of the global batch that each rank, or each pipeline, reads; 0 if they cannot be shared equally.

    Args:
        recipe: recipe of the run.
        rows: rows of the global batch.
        ranks: number of ranks.
    """
    pipelines, remainder = divmod(ranks, recipe.pipeline.stages)
    return 0 if remainder or not pipelines or rows % pipelines else rows // pipelines


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]))
