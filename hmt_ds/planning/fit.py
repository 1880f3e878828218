"""Write a recipe with the fastest layout that fits into the memory of the GPUs: ``hmt-ds plan --fit``."""

from pathlib import Path
from typing import Any

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe_yaml import write_yaml
from hmt_ds.planning.recipe_plan import RecipePlan, changes_for


def write_fitted(values: dict[str, Any], found: RecipePlan, file: Path) -> None:
    """Write a recipe changed to the fastest layout that fits into the memory of the GPUs.

    Args:
        values: the original recipe as nested mappings.
        found: estimates of the recipe, its layouts and GPUs.
        file: path of the new recipe.

    Raises:
        ConfigError: no layout fits, or the file cannot be written.
    """
    best = found.others[0]
    if not best.memory.fits:
        raise ConfigError([f"--fit: no layout fits {found.fleet}: take more or larger GPUs, or model.train lora"])
    changes = changes_for(best)
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        target[name] = value
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        speed = f"{best.tokens_per_second:,.0f} tokens/s per GPU"
        title = f"# Planned for {found.fleet}: {best.layout.family}, {speed}\n"
        file.write_text(title + write_yaml(values), encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"--fit: {file} cannot be written ({error.strerror}): name another file"]) from None
