"""Files that are whole or not there: written aside, flushed, listed with size and hash, made visible by one rename.

checkpoints/
    latest                      name of the newest checkpoint, moved last
    step_000500/
        manifest.json           every other file's size and SHA-256, and the SHA-256 of this list
        progress.json           step, position in the data, layout, schedule
        fragments_00000_000.safetensors   a rank's float32 weights and optimizer states
        rank_00000.safetensors  carried memories of a rank's rows, and random states
    .step_001000.partial/       what is being written, or what a killed run has left
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
PARTIAL = "partial"
CHUNK = 2**24  # bytes that are hashed at a time


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or cannot be used here."""


def write_file(file: Path, write: Callable[[Path], Any]) -> dict[str, Any]:
    """Write a file and see it on the disk; returns its entry in the manifest."""
    write(file)
    file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors lets nobody else read its files
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


def write_manifest(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """List a checkpoint's files. The list has a digest of its own: a changed number in it could go unseen else."""
    write_json(folder / MANIFEST, {"format": FORMAT, "sha256": digest_of(entries), "files": entries})


def digest_of(entries: Any) -> str:
    """The SHA-256 of a manifest's entries."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def seal(target: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Make a checkpoint visible, all at once, and then the newest.

    All that needs room on the disk comes before the first rename, so that a full disk leaves nothing half done.
    """
    partial, aside = partial_of(target), target.with_name(".latest")
    write_manifest(partial, entries)
    flush_folder(partial)
    write_file(aside, lambda path: path.write_text(target.name))
    old = target.with_name(f".{target.name}.old.{PARTIAL}")
    if target.exists():  # a broken one of the same step, that a resumed run has passed over
        target.rename(old)
    partial.rename(target)
    flush_folder(target.parent)
    aside.replace(target.with_name("latest"))
    flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard(target: Path) -> None:
    """Clear away what was written of a checkpoint that failed: it may be what fills the disk."""
    shutil.rmtree(partial_of(target), ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """See a folder's entries on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_checkpoints(folder: Path) -> list[Path]:
    """All that look like checkpoints, the newest step first."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """After which a checkpoint was written, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def prune(newest: Path, keep: int | None, milestones: int | None) -> None:
    """Delete old checkpoints.

    Later steps than the newest's are broken ones that a resumed run has passed over: they count for nothing, and
    neither do earlier ones that have files missing, or else an intact one might have to go for them.

    Args:
        newest: the checkpoint that was just written, which stays.
        keep: how many of the newest stay; None for all.
        milestones: those whose step is a multiple of this stay too.
    """
    if keep is None:
        return
    kept = 1
    for old in (path for path in list_checkpoints(newest.parent) if step_of(path) < step_of(newest)):
        if kept < keep:
            kept += not damage(old, hashes=False)
        elif not (milestones and step_of(old) % milestones == 0):
            gone = old.with_name(f".{old.name}.old.{PARTIAL}")
            old.rename(gone)  # first out of sight: a half-deleted one must not look like a checkpoint
            shutil.rmtree(gone, ignore_errors=True)


def read_manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """The entries of a checkpoint's files.

    Raises:
        CheckpointError: if there is no manifest, or it is not as it was written.
    """
    try:
        content = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        form, digest, entries = content["format"], content["sha256"], content["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read: {why}") from None
    if form != FORMAT:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} is of format {form}, this version reads {FORMAT}")
    if (found := digest_of(entries)) != digest:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} has changed: SHA-256 {found[:12]}, written {str(digest)[:12]}")
    return entries


def damage(checkpoint: Path, *, hashes: bool = True) -> list[str]:
    """What is wrong with a checkpoint's files, one line each.

    Args:
        hashes: read every file to its end; else only look whether all are there, in full length.
    """
    try:
        entries = read_manifest(checkpoint)
    except CheckpointError as error:
        return [str(error).removeprefix(f"{checkpoint}: ")]
    found = [damage_of(checkpoint / name, entry, hashes) for name, entry in entries.items()]
    return [problem for problem in found if problem]


def damage_of(file: Path, entry: dict[str, Any], hashes: bool) -> str | None:
    """What is wrong with a file, if anything is."""
    try:
        if not file.is_file():
            return f"{file.name} is missing"
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"{file.name} has {size:,} bytes, written were {entry['bytes']:,}"
        if hashes and (found := sha256(file)) != entry["sha256"]:
            return f"{file.name} has changed: SHA-256 {found[:12]}, written {entry['sha256'][:12]}"
    except OSError as error:  # of a disk that fails
        return f"{file.name} cannot be read: {error}"
    return None
