"""Checkpoint folders on disk: complete or invisible, and verifiable byte by byte.

checkpoints/
    latest                      name of the newest checkpoint, updated last
    step_000500/
        manifest.json           size and SHA-256 of every other file, and the SHA-256 of the list itself
        progress.json           step, position in the data, layout, schedule
        fragments_00000_000.safetensors   a rank's float32 weights and optimizer states
        rank_00000.safetensors  carried memories of a rank's rows, and random states
    .step_001000.partial/       a checkpoint that is being written, or that a killed run has left behind
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

MANIFEST = "manifest.json"
RUN_STATE = "progress.json"
FORMAT = 1
PARTIAL = "partial"
CHUNK = 2**24  # bytes that are hashed at a time
CURE = ": use another checkpoint"


class CheckpointError(ValueError):
    """Raised for a checkpoint that cannot be written or read, or does not fit the run; the message is for the user."""


class FileEntry(TypedDict):
    """The record of one file of a checkpoint in manifest.json.

    Attributes:
        bytes: size of the file.
        sha256: SHA-256 of the content, in hexadecimal.
        fragments: for a file of weights, a record of each fragment in it: name of the weight, index in the flattened
            weight at which the fragment starts, number of elements, names of the stored tensors (``weight`` and
            optimizer states), and shape of the whole weight.
    """

    bytes: int
    sha256: str
    # of a fragments file, for each fragment: name, start, numel, keys, shape of the whole weight
    fragments: NotRequired[list[tuple[str, int, int, list[str], list[int]]]]


Entries = dict[str, FileEntry]


def write_file(file: Path, write: Callable[[Path], object]) -> FileEntry:
    """Write a file, and flush it to disk.

    Args:
        file: path of the file.
        write: function that writes it, called with the path.

    Returns:
        Size and SHA-256 of the file.
    """
    write(file)
    file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors creates files that only their owner can read
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def write_json(file: Path, content: object) -> FileEntry:
    """Write a JSON file, flush it to disk, and return its size and SHA-256.

    Args:
        file: path of the file.
        content: JSON values.
    """
    return write_file(file, lambda path: path.write_text(json.dumps(content, indent=1), encoding="utf-8"))


def partial_path(target: Path) -> Path:
    """Return the hidden folder ``.NAME.partial`` that a checkpoint ``NAME`` is written into until it is complete.

    Args:
        target: final path of the checkpoint.
    """
    return target.with_name(f".{target.name}.{PARTIAL}")


def start_partial(target: Path) -> None:
    """Create the hidden folder that a new checkpoint is written into, and remove unfinished checkpoints of killed runs.

    Args:
        target: final path of the checkpoint.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".*.{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    partial_path(target).mkdir()


def write_manifest(folder: Path, entries: Entries) -> None:
    """Write manifest.json into a checkpoint's folder: its files with size and SHA-256, and the SHA-256 of that list.

    The list's own SHA-256 detects damage to entries that no file's SHA-256 depends on, such as the start of a fragment.

    Args:
        folder: folder of the checkpoint.
        entries: the checkpoint's files by name.
    """
    write_json(folder / MANIFEST, {"format": FORMAT, "sha256": digest_of(entries), "files": entries})


def digest_of(entries: object) -> str:
    """Return the SHA-256, in hexadecimal, of a checkpoint manifest's list of files.

    Args:
        entries: the list, as JSON values.
    """
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def publish(target: Path, entries: Entries) -> None:
    """Make a complete checkpoint visible with one rename, and then write its name into the file ``latest``.

    Args:
        target: final path of the checkpoint.
        entries: the checkpoint's files by name, for manifest.json.
    """
    partial, new_latest = partial_path(target), target.with_name(".latest")
    # Everything that needs space on the disk comes before the first rename: a full disk leaves nothing half done.
    write_manifest(partial, entries)
    flush_folder(partial)
    write_file(new_latest, lambda path: path.write_text(target.name))
    old = target.with_name(f".{target.name}.old.{PARTIAL}")
    if target.exists():
        # a damaged checkpoint of the same step, which a resumed run has skipped: a rename needs a free name
        target.rename(old)
    # From here on the checkpoint counts. Its files are on the disk already, so no crash can show an incomplete one.
    partial.rename(target)
    flush_folder(target.parent)
    # `latest` is only a hint for people and the command line: resuming looks at the folders themselves
    new_latest.replace(target.with_name("latest"))
    flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard_partial(target: Path) -> None:
    """Remove the hidden folder of an interrupted save, which may fill the disk; a complete checkpoint is not touched.

    Args:
        target: final path of the checkpoint.
    """
    shutil.rmtree(partial_path(target), ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk; otherwise a crash could undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def list_checkpoints(folder: Path) -> list[Path]:
    """List the subfolders that are named like checkpoints (``step_000500``), newest step first."""
    found = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name) and path.is_dir()]
    return sorted(found, key=step_number, reverse=True)


def run_of(folder: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to; any other folder is returned unchanged.

    Args:
        folder: folder of a checkpoint, or any other.
    """
    if not (folder / MANIFEST).is_file():
        return folder
    return Path(os.path.abspath(folder)).parent.parent  # noqa: PTH100  resolve() would follow a link to another disk


def step_number(checkpoint: Path) -> int:
    """Return a checkpoint's optimizer step, from the name of its folder."""
    return int(checkpoint.name.removeprefix("step_"))


def delete_old(newest: Path, keep: int | None, milestones: int | None) -> None:
    """Delete old checkpoints of a run, except for the newest ones and milestones.

    Damaged checkpoints do not count towards ``keep``: neither those of later steps, which a resumed run has skipped,
    nor earlier ones with missing files. Otherwise an intact checkpoint could be deleted in favour of a damaged one.

    Args:
        newest: the checkpoint that was just written; it is kept.
        keep: number of newest checkpoints to keep; None for all.
        milestones: also keep checkpoints whose step is a multiple of this number.
    """
    if keep is None:
        return
    kept = 1
    for old in (path for path in list_checkpoints(newest.parent) if step_number(path) < step_number(newest)):
        if kept < keep:
            kept += not find_damage(old, hashes=False)
        elif not (milestones and step_number(old) % milestones == 0):
            # rename it first: if deletion is interrupted, the rest must not look like a checkpoint
            doomed = old.with_name(f".{old.name}.old.{PARTIAL}")
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def read_manifest(checkpoint: Path) -> Entries:
    """Read the list of a checkpoint's files from its manifest.json: size and SHA-256 by file name.

    Raises:
        CheckpointError: the manifest is missing, or has changed since it was written.
    """
    try:
        content = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        version, digest, entries = content["format"], content["sha256"], content["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read: {why}{CURE}") from None
    if version != FORMAT:
        raise CheckpointError(
            f"{checkpoint}: {MANIFEST} has format {version}, this version reads {FORMAT}: use the version that wrote it"
        )
    if (found := digest_of(entries)) != digest:
        raise CheckpointError(
            f"{checkpoint}: {MANIFEST} has changed: SHA-256 {found[:12]}, written {str(digest)[:12]}{CURE}"
        )
    return entries


def find_damage(checkpoint: Path, *, hashes: bool = True) -> list[str]:
    """Return a line for the user for each damaged or missing file of a checkpoint; an empty list if it is intact.

    Args:
        checkpoint: folder of the checkpoint.
        hashes: whether to read and hash every file; otherwise only existence and sizes are checked.
    """
    try:
        entries = read_manifest(checkpoint)
    except CheckpointError as error:
        return [str(error).removeprefix(f"{checkpoint}: ").removesuffix(CURE)]
    found = [damage_of(checkpoint / name, entry, hashes) for name, entry in entries.items()]
    return [problem for problem in found if problem]


def newest_state(folder: Path) -> dict[str, Any] | None:
    """Return the content of the newest undamaged ``progress.json`` among a run's checkpoints; None if there is none.

    Reads no other file of a checkpoint, so that it can be called before ranks are started.

    Args:
        folder: folder of all checkpoints of the run.
    """
    for checkpoint in list_checkpoints(folder):
        try:
            entry = read_manifest(checkpoint).get(RUN_STATE)
        except CheckpointError:
            continue
        if entry and not damage_of(checkpoint / RUN_STATE, entry, hashes=True):
            return cast(dict[str, Any], json.loads((checkpoint / RUN_STATE).read_text(encoding="utf-8")))
    return None


def damage_of(file: Path, entry: FileEntry, hashes: bool) -> str | None:
    """Describe how a checkpoint's file differs from its entry in the manifest; None if the file is intact.

    Args:
        file: path of the file.
        entry: size and SHA-256 when the file was written.
        hashes: whether to compare the SHA-256 as well as the size.
    """
    try:
        if not file.is_file():
            return f"{file.name} is missing"
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"{file.name} has {size:,} bytes, but {entry['bytes']:,} were written"
        if hashes and (found := sha256(file)) != entry["sha256"]:
            return f"{file.name} has changed: SHA-256 {found[:12]}, written {entry['sha256'][:12]}"
    except OSError as error:  # from a failing disk
        return f"{file.name} cannot be read: {error}"
    return None
