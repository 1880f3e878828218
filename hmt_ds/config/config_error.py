"""Error messages for recipes and options: one line per wrong key, with the key, the rule and the value."""

import difflib
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hmt_ds.config.sections import keys

MOST_CHARACTERS = 200  # of a wrong value in its line
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's names for it in models and in dataclasses
MESSAGES = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("model_type", "dataclass_type", "dict_type"), "must be a mapping of keys to values"),
    "string_type": "must be text",
    "list_type": "must be a list",
    "invalid_key": "keys must be text",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "value_error": "{error}",
}


class ConfigError(ValueError):
    """Raised if a recipe or the options of a command are wrong; ``problems`` has one line for the user per mistake."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Return a context that catches a ConfigError and appends its lines to a list.

    Args:
        problems: the list.
    """
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def describe(error: ValidationError, section: type[BaseModel]) -> list[str]:
    """Turn pydantic's errors into one line per wrong key, such as ``training.steps: must be at least 1, got 0``.

    For an unknown key, the line suggests the most similar known key.

    Args:
        error: the errors of one validation.
        section: the pydantic model that was validated, whose keys are suggested.
    """
    known = [name for name, _ in keys(section)]
    wrong: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors():
        where = [str(part) for part in problem["loc"]]
        while problem["type"] not in ("missing", *UNKNOWN) and len(where) > 1 and not is_known(where, known):
            where.pop()  # pydantic appends the alternative of a union, or the index in a list
        wrong.setdefault(".".join(where), []).append(problem)
    unknown = {key: nearest(key, known) for key, problems in wrong.items() if problems[0]["type"] in UNKNOWN}
    lines = []
    for key, problems in wrong.items():
        if key in unknown:
            lines.append(f"{key}: unknown key" + (f"; did you mean {unknown[key]}?" if unknown[key] else ""))
        elif problems[0]["type"] != "missing" or key not in unknown.values():  # a misspelt key is not missing as well
            lines.append(problem_line(key, problems))
    return lines


def is_known(where: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether the location of a pydantic error is a key of the recipe.

    Args:
        where: parts of the location, such as ``("data", "train", "0", "weight")``; numbers are indices in a list.
        known: dotted names of all keys.
    """
    return not where[-1].isdigit() and ".".join(part for part in where if not part.isdigit()) in known


def problem_line(key: str, problems: Sequence[ErrorDetails]) -> str:
    """Describe the wrong value of one key in a line.

    Args:
        key: dotted name of the key, such as ``training.steps``.
        problems: pydantic's errors about the key: several if its type is a union, one for each member.
    """
    if problems[0]["type"] == "missing":
        return f"{key}: missing, give it a value"
    problems = [one for one in problems if one["type"] == "value_error"] or problems  # the one that says most
    value = problems[0]["input"]
    said = problems[0]["type"] == "value_error" or (isinstance(value, dict) and len(str(value)) > 80)
    shown = "" if said else f", got {shortened(value)}"
    first, *others = dict.fromkeys(map(message, problems))
    return f"{key}: {' or '.join([first, *(other.removeprefix('must be ') for other in others)])}{shown}"


def shortened(value: object) -> str:
    """Return a value as Python writes it, for an error message; of more than 200 characters only the beginning and the
    end.

    Args:
        value: the value that the user gave.
    """
    # a number of thousands of digits cannot be written at all
    return reprlib.repr(value) if isinstance(value, int) or len(repr(value)) > MOST_CHARACTERS else repr(value)


def message(problem: ErrorDetails) -> str:
    """Rephrase a pydantic error as a rule for the user, such as "must be at least 1".

    Args:
        problem: the pydantic error.
    """
    if known := MESSAGES.get(problem["type"]):
        return known.format(**problem.get("ctx", {}))
    return problem["msg"].replace("Input should be", "must be").replace("Input", "value")


def nearest(key: str, known: Sequence[str]) -> str | None:
    """Return the known key most similar to an unknown one, in the same section or else in any section.

    Args:
        key: dotted name of the unknown key.
        known: dotted names of all keys.
    """
    key = ".".join(part for part in key.split(".") if not part.isdigit())  # an element of a list of sections
    section, _, name = key.rpartition(".")
    same = [other for other in known if other.rpartition(".")[0] == section]
    if near := difflib.get_close_matches(key, same, 1, cutoff=0.75):
        return near[0]
    elsewhere = {other.rpartition(".")[2]: other for other in known}
    near = difflib.get_close_matches(name, elsewhere, 1, cutoff=0.75)
    return elsewhere[near[0]] if near else None
