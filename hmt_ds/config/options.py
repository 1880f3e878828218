"""Options of the commands: declared as a class, named in argparse, and checked by pydantic like a recipe."""

import argparse
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hmt_ds.config.config_error import ConfigError, problem_line
from hmt_ds.config.sections import STRICT, fields_of


class Options(BaseModel):
    """Options of a command. A field's docstring is its help; a string in its ``Annotated`` type is its metavar."""

    model_config = ConfigDict(**STRICT, frozen=True)


T = TypeVar("T", bound=Options)
AtLeastOne = Annotated[int, Field(ge=1)]


class Parser(Protocol):
    """An argparse parser, or a group of its options."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...


def flag(name: str) -> str:
    """Return a field's name on the command line."""
    return f"--{name.replace('_', '-')}"


def add_options(parser: Parser, kind: type[Options], leave_out: Collection[str] = ()) -> None:
    """Name an option for each field. Values stay text until :func:`read_options` checks them all together."""
    for name, field in fields_of(kind).items():
        if name in leave_out:
            continue
        text = " ".join((field.description or "").split()).replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag(name), action="store_true", default=None, help=text)
        elif get_origin(field.annotation) is tuple:
            parser.add_argument(flag(name), action="append", metavar=metavar(field), help=text)
        else:
            default = "" if field.is_required() or field.default is None else f" (default: {field.default})"
            parser.add_argument(flag(name), metavar=metavar(field), help=text + default)


def metavar(field: FieldInfo) -> str:
    """Return the placeholder of an option's value in help texts."""
    named = [note for note in field.metadata if isinstance(note, str)]
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
    return named[0] if named else "|".join(get_args(kinds[0])) if kinds else "N"


def read_options(kind: type[T], arguments: argparse.Namespace, **more: Any) -> T:
    """Build a command's options from what argparse found.

    Args:
        more: fields that are no options on the command line.

    Raises:
        ConfigError: with a line for each option whose value is wrong.
    """
    given = {name: value for name in fields_of(kind) if (value := getattr(arguments, name, None)) is not None}
    try:
        return kind(**given | more)
    except ValidationError as error:
        wrong: dict[str, list[ErrorDetails]] = {}
        for problem in error.errors():
            wrong.setdefault(flag(str(problem["loc"][0])), []).append(problem)
        raise ConfigError([problem_line(name, problems) for name, problems in wrong.items()]) from None


def parse_options(kind: type[T], words: Iterable[str]) -> tuple[T, list[str]]:
    """Read options from words of a command line; return them and the words that are none.

    Raises:
        ConfigError: with a line for each option that is wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser, kind)
    try:
        arguments, others = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:  # an option without its value
        raise ConfigError([f"{error.argument_name}: {error.message}"]) from None
    return read_options(kind, arguments), others


def words_of(options: Options) -> list[str]:
    """Write options as words of a command line, from which :func:`parse_options` reads the same options."""
    words = []
    for name, value in options:
        if value is True:
            words.append(flag(name))
        elif isinstance(value, tuple):
            words += [word for one in value for word in (flag(name), str(one))]
        elif value is not None and value is not False:
            words += [flag(name), str(value)]
    return words
