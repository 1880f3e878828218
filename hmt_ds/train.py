"""Train on this rank. Every launcher starts one process per rank as ``--module hmt_ds.train RECIPE [--key
value ...]``."""

from hmt_ds.distributed.quick_imports import quick_imports

with quick_imports():
    import torch

    from hmt_ds.config.load import load_recipe
    from hmt_ds.distributed.process_group import end_process, rank
    from hmt_ds.distributed.stopping import StopSignals
    from hmt_ds.reporting.tables import print_recipe
    from hmt_ds.training.elastic import keep_global_batch
    from hmt_ds.training.rank import prepare_together, run_as_rank
    from hmt_ds.training.source_weights import with_source_weights
    from hmt_ds.training.trainer import Trainer


def main() -> int:
    """Run the training of this process's command line as one rank; return the exit code."""
    return run_as_rank(train)


def train(recipe_file: str, overrides: list[str], device: torch.device) -> None:
    """Train the model of a recipe on this rank, together with all other ranks, until its last step or a stop signal.

    Args:
        recipe_file: path of the recipe, or folder of a run.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.
        device: device of this rank.

    Raises:
        ConfigError: the recipe, the model, the data or the machine is not fit for the run.
        Stopped: a rank has received a stop signal; a checkpoint has been saved.
    """
    signals = StopSignals()
    recipe = keep_global_batch(load_recipe(recipe_file, overrides))
    if rank() == 0:
        print_recipe(recipe.model_dump(mode="json"))
    prepared = prepare_together(recipe, recipe_file, writes_output=True)
    Trainer(with_source_weights(recipe), prepared, device, signals).train()


if __name__ == "__main__":
    end_process(main())
