"""Evaluation on this rank, as ``--module hmt_ds.evaluate RUN_OR_RECIPE [--section.key value ...]``."""

import json
from pathlib import Path

import torch

from hmt_ds.checkpoint import load_checkpoint, newest_intact
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.distributed.process_group import end_process
from hmt_ds.distributed.stopping import StopSignals
from hmt_ds.training.rank import as_rank, prepare_together, say
from hmt_ds.training.trainer import Trainer


def main() -> int:
    """Evaluate; returns the exit code."""
    return as_rank(evaluate)


def evaluate(named: str, overrides: list[str], device: torch.device) -> None:
    """Print and write the held-out perplexity of a run's newest checkpoint, or of a recipe's starting weights."""
    signals = StopSignals()
    source, run = Path(named), Path(named).is_dir()
    recipe_file = source / "recipe.yaml" if run else source
    # what is found stays with the run, also if it was moved
    recipe = load_recipe(recipe_file, [*(["--training.output", json.dumps(named)] if run else []), *overrides])
    if recipe.data.validation is None:
        raise ConfigError(["data.validation: missing, there is nothing to evaluate on"])
    checkpoint = newest_intact(source / "checkpoints", say) if run else None
    if run and checkpoint is None:
        raise ConfigError([f"{source}: the run has no checkpoint yet"])
    trainer = Trainer(recipe, prepare_together(recipe, recipe_file, new_run=False), device, signals)
    if checkpoint:
        trainer.position = load_checkpoint(trainer.executor, checkpoint, weights_only=True)
    trainer.held_out.evaluate(trainer.position.step)


if __name__ == "__main__":
    end_process(main())
