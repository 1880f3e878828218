"""Reading a recipe: YAML, overrides from the command line, and every problem said at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from hmt_ds.recipe import Recipe

PROJECT = Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
    """What is wrong with a recipe: one line per problem."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def load_recipe(file: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply overrides from the command line.

    Args:
        file: YAML.
        overrides: ``--memory.segment_length 256`` or ``--memory.segment_length=256``, split at blanks.

    Raises:
        ConfigError: with every unreadable, unknown, missing or ill-typed key.
    """
    path = Path(file)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise ConfigError([f"{file}: no such recipe" + (f"; did you mean {near[0]}?" if near else "")]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{file}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{file}: a recipe is a mapping of sections, this is {type(values).__name__}"])
    problems = apply_overrides(values, overrides or [])
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [describe(problem) for problem in error.errors()]
    if problems:
        raise ConfigError(problems)
    return recipe


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> list[str]:
    """Put ``--a.b value`` into nested mappings, in place; returns what could not be understood."""
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
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                problems.append(f"{key}: {section} is a value, not a section")
                break
        else:
            try:
                target[leaf] = yaml.safe_load(text)
            except yaml.YAMLError:
                problems.append(f"{key}: {text!r} cannot be read as a value; put quotes around text")
    return problems


def describe(problem: Any) -> str:
    """One line for one of pydantic's errors, with a near key where a key is unknown."""
    where = [str(part) for part in problem["loc"] if not str(part).startswith("dict[")]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(where)}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    shown = problem["input"]
    shown = "" if isinstance(shown, dict) and len(str(shown)) > 80 else f", got {shown!r}"
    message = problem["msg"].replace("Input should be", "must be").replace("Input", "value")
    return f"{key}: {message}{shown}"


def did_you_mean(where: list[str]) -> str:
    """The most similar known key, looked for in the same section and then everywhere."""
    known = dict(keys(Recipe))
    same = [k for k in known if k.split(".")[:-1] == where[:-1]]
    if near := difflib.get_close_matches(".".join(where), same, 1, cutoff=0.75):
        return f"; did you mean {near[0]}?"
    elsewhere = {k.split(".")[-1]: k for k in known}
    near = difflib.get_close_matches(where[-1], elsewhere, 1, cutoff=0.75)
    return f"; did you mean {elsewhere[near[0]]}?" if near else ""


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the recipe with its pydantic field, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys(kind, f"{prefix}{name}.")


def find_file(name: str, recipe: str | Path) -> Path | None:
    """A file named in a recipe: relative to the working folder, to the recipe, or to the project."""
    for folder in (Path(), Path(recipe).resolve().parent, PROJECT):
        if (folder / name).is_file():
            return folder / name
    return None
