"""Recognize a run's folder in ``model.source``, and check that another run can start from its weights."""

from dataclasses import asdict, dataclass
from pathlib import Path

from hmt_ds.backbones import BackboneError, compare_memory
from hmt_ds.checkpoint.files import MANIFEST, list_checkpoints
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Recipe


@dataclass(frozen=True)
class SourceRun:
    """A run that ``model.source`` names, by its folder or one of its checkpoints, as the start of another run.

    Attributes:
        folder: folder of the run.
        checkpoint: folder of the named checkpoint; None for the newest one.
    """

    folder: Path
    checkpoint: Path | None

    @property
    def recipe_file(self) -> Path:
        """Path of the recipe that the run was trained with."""
        return self.folder / "recipe.yaml"


def source_run(source: object) -> SourceRun | None:
    """Return the run that a recipe's ``model.source`` names; None if it names a model.

    Args:
        source: a path, a name on the hub, or a configuration as a mapping.
    """
    if not isinstance(source, str):
        return None
    named = Path(source)
    if (named / MANIFEST).is_file():
        return SourceRun(named.resolve().parent.parent, named)
    is_run = (named / "recipe.yaml").is_file() and not (named / "config.json").is_file()
    return SourceRun(named, None) if is_run else None


def with_source_of_run(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Replace a run in ``model.source`` by the model that the run started from, which has the same shape and tokenizer.

    Checks and benchmarks can then treat the recipe like any other, and need no converted folder.

    Args:
        recipe: the recipe.

    Returns:
        The recipe, unchanged if ``model.source`` is no run; and an error line for each reason why the run's weights
        cannot be used.
    """
    run = source_run(recipe.model.source)
    if run is None:
        return recipe, []
    try:
        trained = load_recipe(run.recipe_file)
    except ConfigError as error:
        return recipe, [f"model.source: {problem}" for problem in error.problems]
    problems = []
    if run.checkpoint is None and not list_checkpoints(run.folder / "checkpoints"):
        problems.append(
            f"model.source: the run {run.folder} has no checkpoint yet: train until one is saved (its checkpoint.every)"
        )
    if isinstance(trained.model.source, dict) and trained.model.train != "whole":
        problems.append(
            f"model.source: the run {run.folder} had model.train {trained.model.train} and random weights (its "
            "model.source is a configuration), which no file has: train it with model.train whole"
        )
    try:
        compare_memory(asdict(trained.memory), recipe.memory)
    except BackboneError as error:
        problems.append(str(error))
    tokenizer = recipe.model.tokenizer or trained.model.tokenizer
    model = recipe.model.model_copy(update={"source": trained.model.source, "tokenizer": tokenizer})
    return recipe.model_copy(update={"model": model}), problems
