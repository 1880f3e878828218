"""Reading a recipe: YAML, overrides from the command line, and every problem said at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hmt_ds.config.derive import fields_of
from hmt_ds.config.recipe import Recipe

PROJECT = Path(__file__).resolve().parents[2]
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's types of error, in models and in dataclasses
FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")  # 1e-4, which YAML 1.1 takes for text


class Reader(yaml.SafeLoader):
    """Of recipes and values."""


class Writer(yaml.SafeDumper):
    """Its inverse."""


Reader.yaml_implicit_resolvers = {  # what looks like a date is text
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for one in (Reader, Writer):
    one.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """What a text of YAML says.

    Raises:
        yaml.YAMLError: if it is none.
    """
    return yaml.load(text, Reader)


def write_yaml(values: Any) -> str:
    """The text for values, in their order."""
    return yaml.dump(values, Dumper=Writer, sort_keys=False)


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
        values = read_yaml(path.read_text(encoding="utf-8"))
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
        problems += describe(error, Recipe)
    if problems:
        raise ConfigError(problems)
    beside = path.resolve().parent / recipe.deepspeed
    if not Path(recipe.deepspeed).is_file() and beside.is_file():
        recipe = recipe.model_copy(update={"deepspeed": str(beside)})  # the run's own recipe lies elsewhere
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
            if target.get(section) is None:  # so a recipe is written that leaves a section out
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


def describe(error: ValidationError, section: type[BaseModel]) -> list[str]:
    """A line for each key that is wrong, with a near key where one is unknown."""
    known, wrong = dict(keys(section)), dict[str, list[Any]]()
    for problem in error.errors():
        where = [str(part) for part in problem["loc"]]
        while problem["type"] not in ("missing", *UNKNOWN) and len(where) > 1 and ".".join(where) not in known:
            where.pop()  # pydantic's name for one of several types
        wrong.setdefault(".".join(where), []).append(problem)
    return [f"{key}: {what_is_wrong(key, problems)}" for key, problems in wrong.items()]


def what_is_wrong(key: str, problems: list[Any]) -> str:
    """With a key, which each of its types has a problem with."""
    if problems[0]["type"] in UNKNOWN:
        return f"unknown key{did_you_mean(key.split('.'))}"
    if problems[0]["type"] == "missing":
        return "missing"
    shown = problems[0]["input"]
    shown = "" if isinstance(shown, dict) and len(str(shown)) > 80 else f", got {shown!r}"
    messages = [problem["msg"].replace("Input should be", "must be").replace("Input", "value") for problem in problems]
    return " or ".join(dict.fromkeys(messages)) + shown


def did_you_mean(where: list[str]) -> str:
    """The most similar known key, looked for in the same section and then everywhere."""
    known = dict(keys(Recipe))
    same = [k for k in known if k.split(".")[:-1] == where[:-1]]
    if near := difflib.get_close_matches(".".join(where), same, 1, cutoff=0.75):
        return f"; did you mean {near[0]}?"
    elsewhere = {k.split(".")[-1]: k for k in known}
    near = difflib.get_close_matches(where[-1], elsewhere, 1, cutoff=0.75)
    return f"; did you mean {elsewhere[near[0]]}?" if near else ""


def keys(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the recipe with its pydantic field, sections included."""
    for name, field in fields_of(section).items():
        yield prefix + name, field
        for kind in (field.annotation, *get_args(field.annotation)):
            yield from keys(kind, f"{prefix}{name}.")


def find_file(name: str, recipe: str | Path) -> Path | None:
    """A file named in a recipe: relative to the working folder, to the recipe, or to the project."""
    for folder in (Path(), Path(recipe).resolve().parent, PROJECT):
        if (folder / name).is_file():
            return folder / name
    return None
