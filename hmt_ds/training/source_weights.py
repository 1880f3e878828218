"""Start a run from the weights of another run, whose checkpoint is converted into a folder in the new run's output."""

import logging
import os
import socket
from pathlib import Path
from typing import cast

from hmt_ds.backbones import BackboneError, check_memory
from hmt_ds.checkpoint import CheckpointError, newest_intact
from hmt_ds.checkpoint.files import digest_of, read_manifest
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import SOURCE_FOLDER, load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.conversion.convert_options import ConvertOptions
from hmt_ds.distributed.process_group import all_gather_object, broadcast_object, rank
from hmt_ds.preflight.source_run import SourceRun, source_run, with_source_of_run
from hmt_ds.reporting.log import log_seconds

logger = logging.getLogger(__name__)


def with_source_weights(recipe: Recipe) -> Recipe:
    """Replace a run in ``model.source`` by a converted folder with the weights of its newest intact checkpoint.

    The folder is in the new run's output, which makes the new run independent of the source run: when resumed, it uses
    the folder again, even if the source run has been trained further. All ranks must call it.

    Args:
        recipe: recipe of the new run.

    Raises:
        ConfigError: on all ranks, if a machine cannot read the checkpoint or write the folder.
    """
    run = source_run(recipe.model.source)
    if run is None:
        return recipe
    checkpoint = run.checkpoint or newest_intact(run.folder / "checkpoints", logger.warning)
    if checkpoint is None:
        raise ConfigError(
            [f"model.source: the run {run.folder} has no intact checkpoint to start from: name another run"]
        )
    target = agreed_folder(recipe, run, checkpoint)
    logger.info("model.source: the weights of %s, as %s", checkpoint, target)
    convert_together(checkpoint, target, merge=load_recipe(run.recipe_file).model.train == "lora")
    try:
        check_memory(str(target), recipe.memory)
    except BackboneError as error:
        raise ConfigError([str(error)]) from None
    checked, _ = with_source_of_run(recipe)
    # the tokenizer stays the one that was checked, by its own name: resuming compares its files
    tokenizer = checked.model.tokenizer or checked.model.source
    model = recipe.model.model_copy(update={"source": str(target), "tokenizer": tokenizer})
    return recipe.model_copy(update={"model": model})


def agreed_folder(recipe: Recipe, run: SourceRun, checkpoint: Path) -> Path:
    """Return, on all ranks, the path that rank 0 chooses for a checkpoint's converted weights.

    Args:
        recipe: recipe of the new run.
        run: the source run.
        checkpoint: folder of the source run's checkpoint.

    Raises:
        ConfigError: on all ranks, if the checkpoint's manifest cannot be read.
    """
    found: Path | str = ""
    if rank() == 0:
        try:
            found = folder_for(recipe, run, checkpoint)
        except CheckpointError as error:
            found = f"model.source: {error}"
    found = cast(Path | str, broadcast_object(found))
    if isinstance(found, str):
        raise ConfigError([found])
    return found


def folder_for(recipe: Recipe, run: SourceRun, checkpoint: Path) -> Path:
    """Return the path of the folder for a checkpoint's converted weights, named by run, step and content.

    Args:
        recipe: recipe of the new run, whose output will contain the folder.
        run: the source run.
        checkpoint: folder of the source run's checkpoint.

    Raises:
        CheckpointError: if the checkpoint's manifest cannot be read.
    """
    folder = Path(recipe.training.output) / SOURCE_FOLDER
    started_from = f"{run.folder.name}-{checkpoint.name if run.checkpoint else 'step_'}"
    if recipe.checkpoint.resume == "auto" and folder.is_dir():
        for earlier in sorted(folder.iterdir()):
            if earlier.name.startswith(started_from):
                return earlier
    return folder / f"{run.folder.name}-{checkpoint.name}-{digest_of(read_manifest(checkpoint))[:8]}"


def convert_together(checkpoint: Path, target: Path, *, merge: bool) -> None:
    """Convert a checkpoint into a folder in float32: on rank 0, then on machines that do not see rank 0's folder.

    All ranks must call it.

    Args:
        checkpoint: folder of the checkpoint.
        target: folder to write; an existing one is kept.
        merge: whether to merge LoRA adapters into the backbone.

    Raises:
        ConfigError: on all ranks, with the problems of every machine.
    """
    from hmt_ds.conversion.convert import MISTAKES, convert  # imports peft

    options, problems = ConvertOptions(dtype="fp32", merge=merge), list[str]()
    for turn in (rank() == 0, os.environ["LOCAL_RANK"] == "0"):
        if turn and not target.is_dir():
            try:
                with log_seconds(logger, f"converting {checkpoint}"):
                    convert(checkpoint, target, options)
            except MISTAKES as error:
                problems = [f"model.source: {socket.gethostname()}: {line}" for line in str(error).splitlines()]
        if found := [problem for every in all_gather_object(problems) for problem in every]:
            raise ConfigError(found)
