"""Files at addresses such as s3://bucket/folder or hf://datasets/owner/name: listed by fsspec, and copied once."""

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
    """Tell whether a source is an address, and not a path or a name on the hub."""
    return "://" in source


def find_remote(source: str, split: str) -> FoundFiles:
    """Return the files at an address, copied to the cache of `datasets`; only those that are read are copied.

    Args:
        source: address of a file, a folder, or a pattern.
        split: split to read, as for local files.

    Raises:
        DataError: if the address cannot be listed or copied, or holds no file of a kind that can be read.
    """
    try:
        system, path = url_to_fs(source)
        root, infos = _listed(system, path)
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"{source} cannot be listed: {first_line(error)}") from error
    found, names = FoundFiles(), dict[Path, str]()
    for address in sorted(infos):
        name = Path(address.removeprefix(root).lstrip("/"))
        if reason := _why_left_out(name, infos[address]["size"]):
            found.left_out[reason].append(str(name))
        else:
            names[name] = address
    if not names:
        notes = f"; left out: {'; '.join(found.notes())}" if found.left_out else ""
        raise DataError(f"{source} holds no file of a kind that can be read: {KINDS}{notes}")
    for split_name, files in choose_splits(list(names), Path(), split, source, found).items():
        for name in files:
            local = _copied(system, names[name], infos[names[name]], source)
            if (kind := kind_of(local)) is None:
                found.left_out["without a suffix, not text"].append(str(name))
            else:
                found.builders.setdefault(kind, {}).setdefault(split_name, []).append(local)
    return found


def _listed(system: fsspec.AbstractFileSystem, path: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Return the folder of an address, and the information about each file below it.

    Raises:
        FileNotFoundError: if nothing is there.
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
        raise FileNotFoundError("nothing is there: check the address")
    return root, files


def _why_left_out(name: Path, size: int | None) -> str | None:
    """Return why a file is not read, as far as its name and size tell; None if it is."""
    if any(part.startswith(".") for part in name.parts):
        return "hidden"
    if size == 0:
        return "empty"
    if ABOUT.fullmatch(name.name):
        return "about the data"
    suffix = Path(name.stem).suffix if name.suffix.lower() in COMPRESSIONS else name.suffix
    return f"of kind {suffix!r}" if suffix and suffix.lower() not in BUILDERS else None


def _copied(system: fsspec.AbstractFileSystem, address: str, info: dict[str, Any], source: str) -> Path:
    """Copy a file to the cache, unless this version of it is there, and return its path.

    Raises:
        DataError: if it cannot be copied.
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
        raise DataError(f"{source}: {address} cannot be copied into {folder}: {first_line(error)}") from error
    finally:
        aside.unlink(missing_ok=True)
