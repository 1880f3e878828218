"""Checks of single values, for the recipe, command-line options and data sources. Imports no torch."""

from pathlib import Path


def why_no_folder(path: Path) -> str | None:
    """Return why a folder cannot be created at a path (the path or one of its parents is a file); None if it can."""
    file = next((parent for parent in (path, *path.parents) if parent.exists() and not parent.is_dir()), None)
    if file is None:
        return None
    return f"{path} is a file, give a folder" if file == path else f"{path} is below {file}, a file: give another path"


def check_digits(value: object) -> object:
    """Raise ValueError for text that is not a whole number; pydantic would accept 1_000, 3.0 and 0+3."""
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError(f"must be a whole number, got {value!r}")
    return value
