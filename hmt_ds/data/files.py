"""Find the files of a data source: which to read, and which are left out and why."""

import glob
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from hmt_ds.data.errors import DataError
from hmt_ds.data.file_kinds import ABOUT, KINDS, FoundFiles, choose_splits, kind_of
from hmt_ds.data.remote import find_remote, is_remote


def find_files(source: str, split: str) -> FoundFiles | None:
    """Find the files of a source that belong to one split; None if no file or folder is there.

    Args:
        source: Path of a file; of a folder, which is searched recursively; or a pattern such as ``data/*.jsonl``.
            Links are followed. Or the address of any, such as ``s3://bucket/data/*.jsonl``.
        split: Split to read, as the `datasets` library takes it, such as `train` or ``train[:10%]``. It matters only
            if the files' names or folders say that they belong to several splits.

    Raises:
        DataError: No file is of a kind that can be read, none is of the split, or the address cannot be read.
    """
    if is_remote(source):
        return find_remote(source, split)
    path, found = Path(source), FoundFiles()
    if path.is_file():
        builder = kind_of(path)
        if builder is None:
            raise DataError(f"{path}: cannot read files with suffix {path.suffix!r}; convert it to one of {KINDS}")
        kinds, root = {path: builder}, path.parent
    else:
        root = path if path.is_dir() else Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        pattern = str(path.relative_to(root))
        matches = [path] if path.is_dir() else root.glob(pattern) if glob.has_magic(pattern) else []
        files = sorted({file for one in matches for file in (_walk(one, root, found) if one.is_dir() else [one])})
        if not files and not path.is_dir():
            return None
        kinds = _kinds_of(files, root, found)
    if not kinds:
        notes = f"; left out: {'; '.join(found.notes())}" if found.left_out else ""
        what = "folder" if path.is_dir() else "pattern"
        raise DataError(f"{what} {source} holds no file that can be read; name files that end in {KINDS}{notes}")
    for name, files in choose_splits(list(kinds), root, split, source, found).items():
        for file in files:
            found.builders.setdefault(kinds[file], {}).setdefault(name, []).append(file)
    return found


def _walk(folder: Path, root: Path, found: FoundFiles) -> Iterator[Path]:
    """Yield all files in a folder recursively, through links; note hidden folders as left out."""
    seen = set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        here = Path(place)
        for name in folders:
            if name.startswith("."):
                found.left_out["hidden"].append(str((here / name).relative_to(root)))
        folders[:] = [n for n in folders if n[0] != "." and os.path.realpath(here / n) not in seen]
        yield from (here / name for name in names)


def _kinds_of(files: list[Path], root: Path, found: FoundFiles) -> dict[Path, str]:
    """Return the builder (of the `datasets` library) of each file to read, and note the other files as left out."""
    kinds, seen = dict[Path, str](), set[str]()
    about = any(file.suffix.lower() != ".md" for file in files)
    for file in files:
        real, kind = os.path.realpath(file), None  # unlike `resolve` no error for a link to itself
        if file.name.startswith("."):  # what an editor or a notebook put aside is no document
            reason = "hidden"
        elif not file.exists():
            reason = "linked to nothing"
        elif not file.is_file():
            reason = "no regular file"
        elif not file.stat().st_size:
            reason = "empty"
        elif real in seen:
            reason = "links to a file that is read"
        elif about and ABOUT.fullmatch(file.name):
            reason = "about the data"
        elif (kind := kind_of(file)) is None:
            reason = f"of kind {file.suffix!r}" if file.suffix else "without a suffix, not text"
        if kind is None:
            found.left_out[reason].append(str(file.relative_to(root)))
        else:
            kinds[file] = kind
            seen.add(real)
    return kinds
