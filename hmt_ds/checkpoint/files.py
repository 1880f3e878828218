"""Files that are whole or not there: written aside, flushed, listed with size and hash, made visible by one rename.

checkpoints/
    latest                      name of the newest checkpoint, moved last
    step_000500/
        manifest.json           every other file's size and SHA-256
        progress.json           step, position in the data, layout, schedule
        fragments_00000_000.safetensors   a rank's float32 weights and optimizer states
        rank_00000.safetensors  carried memories of a rank's rows, and random states
    .step_001000.partial/       what is being written, or what a killed run has left
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
PARTIAL = "partial"
CHUNK = 2**24  # bytes that are hashed at a time


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or cannot be used here."""


def write_file(file: Path, write: Callable[[Path], Any]) -> dict[str, Any]:
    """Write a file and see it on the disk; returns its entry in the manifest."""
    write(file)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def write_json(file: Path, content: Any) -> dict[str, Any]:
    """Write JSON likewise."""
    return write_file(file, lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8"))


def partial_of(target: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return target.with_name(f".{target.name}.{PARTIAL}")


def begin(target: Path) -> None:
    """Make room for a checkpoint; what killed runs have left is cleared away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".*.{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    partial_of(target).mkdir()


def seal(target: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Make a checkpoint visible, all at once, and then the newest."""
    partial = partial_of(target)
    write_json(partial / MANIFEST, {"format": 1, "files": entries})
    flush_folder(partial)
    if target.exists():  # a broken one of the same step, that a resumed run has passed over
        shutil.rmtree(target)
    partial.rename(target)
    flush_folder(target.parent)
    aside = target.with_name(".latest")
    write_file(aside, lambda path: path.write_text(target.name))
    aside.replace(target.with_name("latest"))
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """See a folder's entries on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints_in(folder: Path) -> list[Path]:
    """All that look like checkpoints, the newest step first."""
    return sorted((path for path in folder.glob("step_*") if path.is_dir()), reverse=True)


def prune(folder: Path, keep: int | None, milestones: int | None) -> None:
    """Delete old checkpoints.

    Args:
        keep: how many of the newest stay; None for all.
        milestones: those whose step is a multiple of this stay too.
    """
    for old in checkpoints_in(folder)[keep:] if keep is not None else []:
        step = int(old.name.removeprefix("step_"))
        if not (milestones and step % milestones == 0):
            gone = old.with_name(f".{old.name}.{PARTIAL}")
            old.rename(gone)  # first out of sight: a half-deleted one must not look like a checkpoint
            shutil.rmtree(gone, ignore_errors=True)


def read_manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """The entries of a checkpoint's files.

    Raises:
        CheckpointError: if there is no manifest, or none that can be read.
    """
    try:
        content = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return content["files"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read: {error}") from None


def damage(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint's files, one line each."""
    found = []
    for name, entry in read_manifest(checkpoint).items():
        file = checkpoint / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif (size := file.stat().st_size) != entry["bytes"]:
            found.append(f"{name} has {size:,} bytes, written were {entry['bytes']:,}")
        elif sha256(file) != entry["sha256"]:
            found.append(f"{name} has changed since it was written")
    return found
