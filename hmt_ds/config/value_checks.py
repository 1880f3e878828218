"""Checks of single values, for the recipe, command-line options and data sources. Imports no torch."""

import os
import re
from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, on Linux


def why_no_folder(path: Path) -> str | None:
    """Return why a folder cannot exist at a path (the path or a parent is a file); None if it can.

    Args:
        path: the path.
    """
    file = next((parent for parent in (path, *path.parents) if parent.exists() and not parent.is_dir()), None)
    if file is None:
        return None
    return f"{path} is a file, give a folder" if file == path else f"{path} is below {file}, a file: give another path"


def check_digits(value: object) -> object:
    """Return a value unchanged; refuse text that is not a plain whole number, such as 1_000 or 3.0, which pydantic
    accepts.

    Args:
        value: the value, of any type.

    Raises:
        ValueError: the text is not an optional minus sign with digits.
    """
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError(f"must be a whole number, got {value!r}")
    return value


def expand_path(text: str) -> str:
    """Return a path with ``~`` and ``$VARIABLES`` expanded, as a shell would.

    Args:
        text: the path.

    Raises:
        ValueError: a user or variable is unknown, or the result cannot be a path (blank, or a name over 255 bytes).
    """
    if not text.strip():
        raise ValueError(f"must be a path, got {text!r}")
    # not pathlib's: it makes a hub name of ./a/b, and raises for names that are too long
    path = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111
    if path.startswith("~"):
        raise ValueError(f"{text}: there is no such user; write ./{text} for a file whose name begins with ~")
    if (left := re.search(r"\$(\w+|\{\w+\})", path)) and not os.path.exists(path):  # noqa: PTH110
        raise ValueError(
            f"{text}: the environment variable {left[1].strip('{}')} is not set: set it, or write the path out"
        )
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"must be a path, got {text!r}") from None
    if b"\0" in name or len(name) >= LONGEST_PATH or max(map(len, name.split(b"/"))) > LONGEST_NAME:
        raise ValueError(f"must be a path, of at most {LONGEST_NAME} bytes per name, got {text[:40]!r} ...")
    return path


def check_picture(file: Path) -> Path:
    """Check the path of a picture to write, and return it unchanged.

    Args:
        file: the path.

    Raises:
        ValueError: the path does not end in .png, .svg or .pdf, or its folder does not exist.
    """
    if file.suffix not in PICTURES:
        raise ValueError(f"must end in {', '.join(PICTURES)}, got {str(file)!r}")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ValueError(f"{file} cannot be written: give a file in an existing folder")
    return file
