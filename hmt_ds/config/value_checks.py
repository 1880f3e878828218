"""Checks of single values, shared by recipe and command line. No torch in here."""

from pathlib import Path


def why_no_folder(path: Path) -> str | None:
    """What keeps a path from being a folder, now or later: a file there, or above it. None if nothing does."""
    file = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
    if file is None:
        return None
    return f"{path} is a file, give a folder" if file == path else f"{path} is below {file}, a file: give another path"


def whole_number(option: str, text: str, least: int, problems: list[str]) -> int:
    """The number, or the least one with the problem noted."""
    if text.isascii() and text.isdigit() and int(text) >= least:
        return int(text)
    problems.append(f"{option}: must be a whole number of at least {least}, got {text!r}")
    return least
