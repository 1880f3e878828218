"""Checks of single values, shared by the recipe, the options of the commands, and the data. Imports no torch."""

from pathlib import Path


def why_no_folder(path: Path) -> str | None:
    """Return what keeps a folder from being created at a path, or None: the path or one of its parents is a file."""
    file = next((parent for parent in (path, *path.parents) if parent.exists() and not parent.is_dir()), None)
    if file is None:
        return None
    return f"{path} is a file, give a folder" if file == path else f"{path} is below {file}, a file: give another path"


def check_digits(value: object) -> object:
    """Raise ValueError if a value is text but not a whole number: pydantic would read 1_000, 3.0 and 0+3 as one."""
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError(f"must be a whole number, got {value!r}")
    return value
