"""Read the recipe to estimate, or make a recipe for a known model. Imports no torch, so that errors appear at once."""

from pathlib import Path
from typing import Any

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import apply_overrides, load_recipe, read_mapping
from hmt_ds.config.recipe import Recipe
from hmt_ds.planning.known_models import KNOWN_MODELS, known_model


def default_recipe(model: str) -> dict[str, Any]:
    """Return a recipe, as nested mappings, for estimating a model of which only the name is given.

    Its values are those that the shipped recipes have in common.

    Args:
        model: name of the model on the hub.
    """
    return {
        "model": {"source": model},
        "memory": {
            "interface": "adapted",
            "mode": "rmt",
            "segment_length": 1024,
            "memory_tokens": 16,
            "last_memories": 4,
        },
        "data": {"train": {"source": "data/train.jsonl"}},
        "training": {"output": f"runs/{model.rpartition('/')[2]}", "steps": 1000, "bptt_depth": 8, "batch_size": 4},
        "optimizer": {"lr": 2.0e-5},
        "deepspeed": "ds_configs/zero2.json",
    }


def read_source(source: str, overrides: list[str]) -> tuple[Recipe, dict[str, Any]]:
    """Read a recipe file, or make a recipe for a known model.

    Args:
        source: path of the recipe, or name of a known model, such as ``meta-llama/Llama-2-7b-hf``.
        overrides: keys of the recipe to change, such as ``["--training.batch_size", "4"]``.

    Returns:
        The checked recipe, and its keys and values as nested mappings.

    Raises:
        ConfigError: with a line for each problem of the recipe.
    """
    path = Path(source)
    if not path.exists() and (name := known_model(source)):
        values = default_recipe(name)
        problems = apply_overrides(values, overrides)
        if problems:
            raise ConfigError(problems)
        return Recipe.model_validate(values), values
    if not path.exists() and not path.suffix:
        known = ", ".join(name.partition("/")[2] for name in KNOWN_MODELS)
        raise ConfigError([f"{source}: no such recipe, and not a known model: name a recipe or one of {known}"])
    if path.is_dir():
        path = path / "recipe.yaml"
    recipe = load_recipe(path, overrides)
    values = read_mapping(path)
    apply_overrides(values, overrides)
    return recipe, values
