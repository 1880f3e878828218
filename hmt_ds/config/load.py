"""Load a recipe from YAML with overrides from the command line, and report one line per problem."""

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from hmt_ds.config.config_error import ConfigError, describe
from hmt_ds.config.folder_recipe import CONFIG_FILE, complete_data, folder_recipe, read_converted_config
from hmt_ds.config.recipe import Model, Recipe
from hmt_ds.config.recipe_yaml import MisreadError, read_yaml
from hmt_ds.config.sections import keys

PROJECT = Path(__file__).resolve().parents[2]
SOURCE_FOLDER = "source"  # in the folder of a run that started from another run: that one's weights
# Overrides for a run's recipe, which may be another person's: it cannot allow code to run, only the command line can.
NO_CONSENT = ("--model.trust_remote_code", "false")


def load_recipe(file: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe from a YAML file, apply overrides from the command line, and check it.

    Args:
        file: path of the recipe; or of a converted folder's config.json, for a recipe that evaluates this folder.
        overrides: words of the command line, such as ``--memory.segment_length 256`` (two words) or
            ``--memory.segment_length=256``.

    Raises:
        ConfigError: with a line for each unreadable, unknown, missing or wrong key.
    """
    path = Path(file)
    config = read_converted_config(path) if path.name == CONFIG_FILE else None
    values = read_mapping(path) if config is None else folder_recipe(path.parent, config)
    problems = apply_overrides(values, overrides or [])
    if config is not None:
        problems += complete_data(values, path.parent)
    wrong = wrong_numbers(values)
    problems += wrong.values()
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [line for line in describe(error, Recipe) if line.partition(": ")[0] not in wrong]
    if problems:
        raise ConfigError(problems)
    beside = path.resolve().parent / recipe.deepspeed
    if not Path(recipe.deepspeed).is_file() and beside.is_file():
        # a run saves its recipe in another folder, from where a path relative to this file would not be found
        recipe = recipe.model_copy(update={"deepspeed": str(beside)})
    return recipe.model_copy(update={"model": find_moved_source(recipe.model, path.resolve().parent)})


def find_moved_source(model: Model, run: Path) -> Model:
    """Correct ``model.source`` if it names a converted folder inside the run's folder, and the run was moved.

    Args:
        model: section ``model`` of the run's recipe.
        run: the folder that the recipe is in.

    Returns:
        The section with the folder's present path; unchanged if there is nothing to correct.
    """
    if isinstance(model.source, str) and not Path(model.source).exists():
        moved = run / SOURCE_FOLDER / Path(model.source).name
        if moved.is_dir():
            return model.model_copy(update={"source": str(moved)})
    return model


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a recipe's YAML file as nested dicts, without checking keys and values.

    Args:
        path: path of the file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise ConfigError(
            [f"{path}: no such recipe{f'; did you mean {near[0]}?' if near else ': check the path'}"]
        ) from None
    except MisreadError as error:
        raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: not readable as YAML, correct it: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigError(
            [f"{path}: a recipe must be a mapping of sections such as model and data, got {type(values).__name__}"]
        )
    return values


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> list[str]:
    """Apply overrides from the command line to a recipe, in place.

    Args:
        values: the recipe as nested dicts.
        overrides: words such as ``--memory.segment_length 256`` (two words) or ``--memory.segment_length=256``.

    Returns:
        A line for the user for each override that could not be applied.
    """
    problems, words = [], iter(overrides)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            problems.append(f"{word}: not an override; write one like --memory.segment_length 256")
            continue
        text = value if equals else next(words, None)
        if text is None:
            problems.append(f"{word}: has no value; write one like --memory.segment_length 256")
            continue
        *sections, leaf = key.split(".")
        try:
            section_of(values, sections)[leaf] = read_yaml(text)
        except ConfigError as error:
            problems += [f"{key}: {problem}" for problem in error.problems]
        except MisreadError as error:
            problems += [f"{key}: {problem.partition(': ')[2]}" for problem in error.problems]
        except yaml.YAMLError:
            problems.append(f"{key}: {text!r} cannot be read as a value; put quotes around text")
    return problems


def section_of(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return a section of a recipe; create an empty one if it is missing.

    Args:
        values: the recipe as nested dicts.
        names: parts of the section's dotted name; a number is the index in a list of sections, as in data.train.0.

    Raises:
        ConfigError: the name is that of a plain value, or an index is not in the list.
    """
    target: Any = values
    for number, name in enumerate([*names, ""]):
        if isinstance(target, list) and not (name.isdigit() and int(name) < len(target)):
            there = ".".join(names[:number])
            raise ConfigError([f"{there} is a list of {len(target)} items: name one of them, such as {there}.0"])
        if not isinstance(target, dict | list):
            raise ConfigError(
                [
                    f"{names[number - 1]} is a plain value, {target!r:.80}, without keys below it: override "
                    f"{names[number - 1]} itself"
                ]
            )
        if isinstance(target, list):
            target = target[int(name)]
        elif number < len(names):
            if target.get(name) is None:  # a section that the recipe leaves out, or that is null
                target[name] = {}
            target = target[name]
    return target


def wrong_numbers(values: dict[str, Any]) -> dict[str, str]:
    """Find numbers in a recipe that are true or false, which Python takes for 1 and 0, or too large for torch.

    Args:
        values: the recipe as nested dicts.

    Returns:
        A line for the user, by dotted key.
    """

    def is_number(kind: object) -> bool:
        return kind in (int, float) or any(map(is_number, get_args(kind)))

    def value_of(key: str) -> Any:
        found: Any = values
        for part in key.split("."):
            if isinstance(found, list):  # of sections
                found = [one.get(part) for one in found if isinstance(one, dict)]
            else:
                found = found.get(part) if isinstance(found, dict) else None
        return found

    problems = {}
    for key in (key for key, field in keys(Recipe) if is_number(field.annotation)):
        value = value_of(key)
        most = 2**63 - 1 if key == "training.seed" else 2**31 - 1
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if any(isinstance(part, bool) for part in parts):
            problems[key] = f"{key}: must be a number, got {value}"
        elif large := [part for part in parts if isinstance(part, int) and abs(part) > most]:
            bits = large[0].bit_length()  # thousands of digits cannot be written
            got = f"{large[0]:,}" if bits < 200 else f"a number of {bits:,} bits"
            problems[key] = f"{key}: must be at most {most:,}, got {got}"
    return problems


def find_file(name: str, recipe: str | Path) -> Path | None:
    """Return the path of a file that a recipe names; None if it is in none of the folders that are searched.

    Args:
        name: path as written in the recipe, relative to the working folder, the recipe's folder or the project.
        recipe: path of the recipe.
    """
    for folder in (Path(), Path(recipe).resolve().parent, PROJECT):
        if (folder / name).is_file():
            return folder / name
    return None
