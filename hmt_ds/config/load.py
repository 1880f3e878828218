"""Load a recipe from YAML with overrides from the command line, and report one line per problem."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hmt_ds.config.config_error import ConfigError, describe
from hmt_ds.config.recipe import Recipe

PROJECT = Path(__file__).resolve().parents[2]
FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # 1e-4, which YAML 1.1 takes for text


class RecipeLoader(yaml.SafeLoader):
    """YAML loader of recipes: 1e-4 is read as a number, and a date as text."""


class RecipeDumper(yaml.SafeDumper):
    """YAML dumper whose output :class:`RecipeLoader` reads back unchanged."""


RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for one in (RecipeLoader, RecipeDumper):
    one.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Parse YAML text; 1e-4 is a number, and a date is text.

    Raises:
        yaml.YAMLError: if the text is not YAML.
    """
    return yaml.load(text, RecipeLoader)


def write_yaml(values: object) -> str:
    """Format values as YAML; mappings keep their order."""
    return yaml.dump(values, Dumper=RecipeDumper, sort_keys=False)


def load_recipe(file: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe from a YAML file and apply overrides from the command line.

    Args:
        file: path of the recipe.
        overrides: words of the command line, such as ``--memory.segment_length 256`` (two words) or
            ``--memory.segment_length=256``.

    Raises:
        ConfigError: with a line for each unreadable, unknown, missing or wrong key.
    """
    path = Path(file)
    values = read_mapping(path)
    problems = apply_overrides(values, overrides or [])
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += describe(error, Recipe)
    if problems:
        raise ConfigError(problems)
    beside = path.resolve().parent / recipe.deepspeed
    if not Path(recipe.deepspeed).is_file() and beside.is_file():
        # a run saves its recipe in another folder, from where a path relative to this file would not be found
        recipe = recipe.model_copy(update={"deepspeed": str(beside)})
    return recipe


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a recipe's YAML file as nested mappings, without checking keys and values.

    Raises:
        ConfigError: if the file is missing, not YAML, or not a mapping.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise ConfigError([f"{path}: no such recipe" + (f"; did you mean {near[0]}?" if near else "")]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: a recipe is a mapping of sections, this is {type(values).__name__}"])
    return values


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> list[str]:
    """Apply overrides (``--section.key value``) to nested mappings, in place; return a line for each wrong one."""
    problems, words = [], iter(overrides)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            problems.append(f"{word}: overrides look like --memory.segment_length 256")
            continue
        text = value if equals else next(words, None)
        if text is None:
            problems.append(f"{word}: no value given")
            continue
        *sections, leaf = key.split(".")
        target = values
        for section in sections:
            if target.get(section) is None:  # a section that the recipe leaves out, or that is null
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                problems.append(f"{key}: {section} is a value, not a section")
                break
        else:
            try:
                target[leaf] = read_yaml(text)
            except yaml.YAMLError:
                problems.append(f"{key}: {text!r} cannot be read as a value; put quotes around text")
    return problems


def find_file(name: str, recipe: str | Path) -> Path | None:
    """Find a file named in a recipe, relative to the working folder, the recipe's or the project's; None if missing."""
    for folder in (Path(), Path(recipe).resolve().parent, PROJECT):
        if (folder / name).is_file():
            return folder / name
    return None
