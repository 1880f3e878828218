"""Training on this rank: what every launcher starts, as ``--module hmt_ds.train RECIPE [--section.key value ...]``."""

import sys
from pathlib import Path

from hmt_ds.config import ConfigError, load_recipe
from hmt_ds.parallel.distributed import end_process, from_rank_0, join, leave, quiet, rank
from hmt_ds.prepare import Prepared, prepare
from hmt_ds.recipe import Recipe
from hmt_ds.reporting.progress import print_problems
from hmt_ds.reporting.tables import print_recipe
from hmt_ds.trainer import Trainer


def main(arguments: list[str] | None = None) -> int:
    """Join the other ranks and train; returns the exit code, 2 for a mistake in the recipe."""
    words = [w for w in (sys.argv[1:] if arguments is None else arguments) if not w.startswith("--local_rank")]
    quiet()
    device = join()
    try:
        recipe = load_recipe(words[0], words[1:])
        if rank() == 0:
            print_recipe(recipe.model_dump(mode="json"))
        prepared = prepare_together(recipe, words[0], new_run=True)
        Trainer(recipe, prepared, device).train()
    except ValueError as error:
        if not is_mistake(error):
            raise
        if rank() == 0:
            print_problems(str(error).splitlines())
        return 2
    finally:
        leave()
    return 0


def prepare_together(recipe: Recipe, recipe_file: str | Path, *, new_run: bool) -> Prepared:
    """Rank 0 checks the recipe and reads the data; the others take it from the cache, or end with it."""
    prepared = None
    problems: list[str] = []
    if rank() == 0:
        try:
            prepared = prepare(recipe, recipe_file, new_run=new_run)
        except ConfigError as error:
            problems = error.problems
    if found := from_rank_0(problems):
        raise ConfigError(found)  # type: ignore[arg-type]
    return prepared or prepare(recipe, recipe_file, new_run=new_run)


def is_mistake(error: ValueError) -> bool:
    """Whether an error is the user's to mend, and its message enough."""
    from hmt_ds.checkpoint import CheckpointError

    return isinstance(error, (ConfigError, CheckpointError))


if __name__ == "__main__":
    end_process(main())
