"""List files at addresses such as s3://bucket/folder or hf://datasets/owner/name with fsspec, and copy them once."""

import glob
import hashlib
import logging
import uuid
from pathlib import Path
from typing import Any

import datasets
import fsspec
from fsspec.core import url_to_fs

from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.file_kinds import ABOUT, BUILDERS, COMPRESSIONS, KINDS, FoundFiles, choose_splits, kind_of

logger = logging.getLogger(__name__)

# What tells that a file was replaced; file systems name it differently.
VERSION_KEYS = ("size", "ETag", "etag", "mtime", "created", "LastModified", "last_modified", "blob_id", "generation")


def is_remote(source: str) -> bool:
    """Return whether a source is an address such as s3://bucket/folder, and not a path or a name on the hub."""
    return "://" in source


def find_remote(source: str, split: str) -> FoundFiles:
    """Find the files at a remote address that belong to one split, and copy them to the cache of the `datasets`
    library.

    Args:
        source: Address of a file, a folder, or a pattern, such as `s3://bucket/data/*.jsonl`.
        split: Split to read, as the `datasets` library takes it, such as `train`. It matters only if the files' names
            or folders say that they belong to several splits.

    Raises:
        DataError: The address cannot be listed or copied, holds no file that can be read, or none of the split.
    """
    try:
        system, path = url_to_fs(source)
        root, infos = _listed(system, path)
    except Exception as error:  # each file system has errors of its own
        raise DataError(
            f"{source} cannot be listed: {first_line(error)}; check the address and your credentials"
        ) from error
    found, names = FoundFiles(), dict[Path, str]()
    for address in sorted(infos):
        name = Path(address.removeprefix(root).lstrip("/"))
        if reason := _why_left_out(name, infos[address]["size"]):
            found.left_out[reason].append(str(name))
        else:
            names[name] = address
    if not names:
        notes = f"; left out: {'; '.join(found.notes())}" if found.left_out else ""
        raise DataError(f"{source} holds no file that can be read; name files that end in {KINDS}{notes}")
    for split_name, files in choose_splits(list(names), Path(), split, source, found).items():
        for name in files:
            local = _copied(system, names[name], infos[names[name]], source)
            if (kind := kind_of(local)) is None:
                found.left_out["without a suffix, not text"].append(str(name))
            else:
                found.builders.setdefault(kind, {}).setdefault(split_name, []).append(local)
    return found


def _listed(system: fsspec.AbstractFileSystem, path: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the root folder of an address, and fsspec's information about each file below it, by the file's address.

    Raises:
        FileNotFoundError: There is no file.
    """
    if glob.has_magic(path):
        entries = system.glob(path, detail=True)
        root = path[: next(n for n, letter in enumerate(path) if letter in "*?[")].rpartition("/")[0]
    elif system.isfile(path):
        root, entries = path.rpartition("/")[0], {path: system.info(path)}
    else:
        root, entries = path, system.find(path, detail=True)
    files = {address: info for address, info in entries.items() if info["type"] == "file"}
    if not files:
        raise FileNotFoundError(f"nothing is at {path}")
    return root, files


def _why_left_out(name: Path, size: int | None) -> str | None:
    """Return why a file is not read, judged by its name and its size in bytes; None if it is read."""
    if any(part.startswith(".") for part in name.parts):
        return "hidden"
    if size == 0:
        return "empty"
    if ABOUT.fullmatch(name.name):
        return "about the data"
    suffix = Path(name.stem).suffix if name.suffix.lower() in COMPRESSIONS else name.suffix
    return f"of kind {suffix!r}" if suffix and suffix.lower() not in BUILDERS else None


def _copied(system: fsspec.AbstractFileSystem, address: str, info: dict[str, Any], source: str) -> Path:
    """Copy a file to the cache of the `datasets` library, unless this version of it is there; return the copy's path.

    Raises:
        DataError: It cannot be copied.
    """
    version = [system.unstrip_protocol(address), *(str(info.get(key)) for key in VERSION_KEYS)]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hmt_ds_remote"
    target = folder / hashlib.sha256(repr(version).encode()).hexdigest()[:32] / Path(address).name
    if target.exists():
        return target
    aside = target.with_name(f".{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        logger.info("copying %s (%s bytes)", version[0], f"{info['size']:,}")
        system.get_file(address, str(aside))
        return aside.replace(target)
    except Exception as error:  # each file system has errors of its own
        raise DataError(
            f"{source}: {address} cannot be copied into {folder}: {first_line(error)}; check access and free space"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
