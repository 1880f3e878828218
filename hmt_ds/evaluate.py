"""Evaluation on this rank, as ``--module hmt_ds.evaluate RUN_OR_RECIPE [--section.key value ...]``."""

import sys
from pathlib import Path

from hmt_ds.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from hmt_ds.config import ConfigError, load_recipe
from hmt_ds.parallel.distributed import end_process, join, leave, quiet, rank
from hmt_ds.reporting.progress import print_problems
from hmt_ds.train import prepare_together
from hmt_ds.trainer import Trainer


def main(arguments: list[str] | None = None) -> int:
    """Print and write the held-out perplexity of a run's newest checkpoint, or of a recipe's starting weights."""
    words = [w for w in (sys.argv[1:] if arguments is None else arguments) if not w.startswith("--local_rank")]
    quiet()
    device = join()
    try:
        source, run = Path(words[0]), Path(words[0]).is_dir()
        recipe_file = source / "recipe.yaml" if run else source
        recipe = load_recipe(recipe_file, words[1:])
        if recipe.data.validation is None:
            raise ConfigError(["data.validation: missing, there is nothing to evaluate on"])
        checkpoint = latest_checkpoint(source / "checkpoints") if run else None
        if run and checkpoint is None:
            raise ConfigError([f"{source}: the run has no checkpoint yet"])
        trainer = Trainer(recipe, prepare_together(recipe, recipe_file, new_run=False), device)
        if checkpoint:
            trainer.position = load_checkpoint(trainer.executor, checkpoint, weights_only=True)
        trainer.evaluate()
        if rank() == 0:
            print(f"written to  {trainer.folder / 'evaluation.json'} and evaluation.png", flush=True)
    except (ConfigError, CheckpointError) as error:
        if rank() == 0:
            print_problems(str(error).splitlines())
        return 2
    finally:
        leave()
    return 0


if __name__ == "__main__":
    end_process(main())
