"""Options of commands: declared as a pydantic dataclass, registered with argparse, checked like a recipe."""

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args, get_origin

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hmt_ds.config.config_error import ConfigError, problem_line
from hmt_ds.config.sections import fields_of
from hmt_ds.config.value_checks import check_digits, expand_path

WholeNumber = Annotated[int, BeforeValidator(check_digits)]
AtLeastOne = Annotated[WholeNumber, Field(ge=1)]
FilePath = Annotated[Path, BeforeValidator(lambda text: expand_path(str(text)))]


class Options:
    """Base class of a command's options; each subclass is a pydantic dataclass with a field per option.

    All fields have defaults. A field's docstring is its help text, and a string in its ``Annotated`` type is the
    placeholder of its value. Fields of type ``bool`` become flags; tuples become options that can be repeated.
    """

    def conflicts(self) -> list[str]:
        """Return an error line for each conflict between options whose values are valid on their own."""
        return []


T = TypeVar("T", bound=Options)


def path_operand(text: str) -> Path:
    """Convert a command-line argument to a path, expanding ``~`` and ``$VARIABLES``; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: a user or variable is unknown, or the text cannot be a path.
    """
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def flag(name: str) -> str:
    """Return the command-line option for a field's name: ``dry_run`` becomes ``--dry-run``.

    Args:
        name: name of the field.
    """
    return f"--{name.replace('_', '-')}"


def add_options(
    group: "argparse.ArgumentParser | argparse._ArgumentGroup", kind: type[Options], leave_out: Collection[str] = ()
) -> None:
    """Add an argparse option for each field of an options class.

    Values stay text, so that :func:`read_options` can check all of them together.

    Args:
        group: the parser, or a group in it, to add the options to.
        kind: the options class.
        leave_out: names of fields that get no option.
    """
    for name, field in fields_of(kind).items():
        if name in leave_out:
            continue
        text = help_of(kind, name)
        if field.annotation is bool:
            group.add_argument(flag(name), action="store_true", default=None, help=text)
        elif get_origin(field.annotation) is tuple:
            default = f" (default: {','.join(map(str, field.default))})" if field.default else ""
            group.add_argument(flag(name), action="append", metavar=placeholder(field), help=text + default)
        else:
            default = "" if field.is_required() or field.default is None else f" (default: {field.default})"
            group.add_argument(flag(name), metavar=placeholder(field), help=text + default)


def help_of(kind: type[Options], name: str) -> str:
    """Return an option's help text for argparse: the docstring of its field, joined into one line.

    Args:
        kind: the options class, or a subclass of the one that declares the field.
        name: name of the field.
    """
    found = (fields_of(base).get(name) for base in kind.__mro__)  # pydantic keeps no docstrings of inherited fields
    text = next((field.description for field in found if field and field.description), "")
    return " ".join(text.split()).replace("%", "%%")


def placeholder(field: FieldInfo) -> str:
    """Return the placeholder of an option's value in help texts, such as FOLDER, N or fp32|bf16.

    Args:
        field: the option's pydantic field.
    """
    named = [note for note in field.metadata if isinstance(note, str)]
    choices = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
    return named[0] if named else "|".join(get_args(choices[0])) if choices else "N"


def read_options(kind: type[T], arguments: argparse.Namespace) -> tuple[T, list[str]]:
    """Build a command's options from the arguments that argparse parsed.

    Args:
        kind: the options class.
        arguments: argparse's result; values are text.

    Returns:
        The options, and a line for the user for each wrong one. Wrong options keep their defaults, so that conflicts
        between the others are found too.
    """
    given = {name: value for name in fields_of(kind) if (value := getattr(arguments, name)) is not None}
    try:
        options = kind(**given)
        return options, options.conflicts()
    except ValidationError as error:
        wrong: dict[str, list[ErrorDetails]] = {}
        for problem in error.errors():
            wrong.setdefault(str(problem["loc"][0]), []).append(problem)
    options = kind(**{name: value for name, value in given.items() if name not in wrong})
    return options, [problem_line(flag(name), problems) for name, problems in wrong.items()] + options.conflicts()


def parse_options(kind: type[T], words: Iterable[str]) -> tuple[T, list[str]]:
    """Parse options of one class from words of a command line.

    Args:
        kind: the options class.
        words: the words, such as ``--runs 3``.

    Returns:
        The options, and the remaining words, which are not options of ``kind``.

    Raises:
        ConfigError: with a line for each wrong option.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser, kind)
    try:
        arguments, others = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:  # an option without its value
        raise ConfigError([f"{error.argument_name}: {error.message}"]) from None
    options, problems = read_options(kind, arguments)
    if problems:
        raise ConfigError(problems)
    return options, others


def words_of(options: Options) -> list[str]:
    """Format options as words of a command line, such as ``["--runs", "3"]``; :func:`parse_options` reverses it."""
    words = []
    for name in fields_of(options):
        value = getattr(options, name)
        if value is True:
            words.append(flag(name))
        elif value is not None and value is not False:
            # joined, because a text may begin with a dash
            words += [f"{flag(name)}={one}" for one in (value if isinstance(value, tuple) else [value])]
    return words
