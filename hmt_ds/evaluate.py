"""Evaluate a model on this rank. Started on each rank as ``--module hmt_ds.evaluate RUN_OR_RECIPE [--key
value ...]``."""

import json
import logging
from pathlib import Path

from hmt_ds.distributed.quick_imports import quick_imports

with quick_imports():
    import torch

    from hmt_ds.checkpoint import load_weights, newest_intact
    from hmt_ds.checkpoint.files import run_of
    from hmt_ds.checkpoint.restore import require_intact
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.config.folder_recipe import CONFIG_FILE, recipe_file_of
    from hmt_ds.config.load import NO_CONSENT, load_recipe
    from hmt_ds.config.recipe import Recipe
    from hmt_ds.distributed.process_group import end_process
    from hmt_ds.distributed.stopping import StopSignals
    from hmt_ds.reporting.log import log_seconds
    from hmt_ds.training.build import build_reader
    from hmt_ds.training.evaluations import evaluations
    from hmt_ds.training.rank import prepare_together, run_as_rank
    from hmt_ds.training.source_weights import with_source_weights

logger = logging.getLogger(__name__)


def main() -> int:
    """Run the evaluation of this process's command line as one rank; return the exit code."""
    return run_as_rank(evaluate)


def evaluate(run_or_recipe: str, overrides: list[str], device: torch.device) -> None:
    """Evaluate held-out losses, retrieval and tasks on this rank, together with all other ranks; print and store the
    results.

    Args:
        run_or_recipe: path of a run (its newest checkpoint is evaluated), of one of its checkpoints, or of a recipe
            (its starting weights).
        overrides: keys of the recipe to change, such as ``["--evaluation.documents", "100"]``.
        device: device of this rank.

    Raises:
        ConfigError: there is no model to evaluate, or no documents to evaluate it on.
        CheckpointError: the checkpoint is damaged.
    """
    signals = StopSignals()
    source, is_run = Path(run_or_recipe), Path(run_or_recipe).is_dir()
    run = run_of(source)
    recipe_file = recipe_file_of(run) if is_run else source
    is_converted = recipe_file.name == CONFIG_FILE
    # the results go into the folder that was named, even if the run was moved since it was trained
    output = ["--training.output", json.dumps(str(run))] if is_run else []
    recipe = load_recipe(recipe_file, [*output, *NO_CONSENT, *overrides])
    own_data = not is_run
    if is_run and not is_converted:
        own_data = reads(recipe) == reads(load_recipe(recipe_file, [*output, *NO_CONSENT]))
    if recipe.data.validation is None and recipe.data.retrieval is None and not recipe.evaluation.tasks:
        raise ConfigError(["data.validation: missing, so there is nothing to evaluate on: name held-out documents"])
    checkpoint = find_checkpoint(source, run) if is_run and not is_converted else None
    prepared = prepare_together(recipe, recipe_file, writes_output=False)
    recipe = with_source_weights(recipe)
    with log_seconds(logger, "building the model"):
        reader = build_reader(recipe, prepared, device)
    step = load_weights(reader, checkpoint).step if checkpoint else 0
    stop = lambda: signals.raise_if_received(device, "stopped in the evaluation")  # noqa: E731
    for evaluation in evaluations(recipe, prepared, reader, stop, own_data=own_data):
        evaluation.evaluate(step)


def find_checkpoint(source: Path, run: Path) -> Path:
    """Return the checkpoint to evaluate; all ranks must call this together.

    Args:
        source: path that the user named: a run, or one of its checkpoints.
        run: folder of the run, whose newest intact checkpoint is taken if ``source`` is the run itself.

    Raises:
        CheckpointError: ``source`` is a damaged checkpoint.
        ConfigError: the run has no checkpoint.
    """
    if source != run:
        return require_intact(source)
    if checkpoint := newest_intact(run / "checkpoints", logger.warning):
        return checkpoint
    raise ConfigError([f"{run}: the run has no checkpoint yet: train until one is saved (checkpoint.every)"])


def reads(recipe: Recipe) -> tuple[object, ...]:
    """Return the settings of a recipe that determine which tokens an evaluation reads, to compare two recipes by them.

    Args:
        recipe: the recipe.
    """
    model, chosen = recipe.model, recipe.evaluation
    tokenizer, length = model.tokenizer or model.source, recipe.memory.segment_length
    return recipe.data.validation, recipe.data.retrieval, tokenizer, chosen.documents, chosen.segments_read, length


if __name__ == "__main__":
    end_process(main())
