"""Can a folder be written? Asked before any work is done for it."""

from pathlib import Path


def why_no_folder(path: Path) -> str | None:
    """What keeps a path from being a folder, now or later: a file there, or above it. None if nothing does."""
    file = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
    if file is None:
        return None
    return f"{path} is a file, give a folder" if file == path else f"{path} is below {file}, a file: give another path"
