"""Find the files of a source: what each is, which split it belongs to, and which are left out and why."""

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import pyarrow as pa

from hmt_ds.data.errors import DataError

BUILDERS = {
    **dict.fromkeys((".txt", ".md"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # pyarrow has both
KINDS = f"{', '.join(BUILDERS)}, each also compressed ({' or '.join(COMPRESSIONS)})"
MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}  # the last begins a stream of Arrow
HEAD = 4096  # bytes that tell the kind of a file without a suffix
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Files about the data beside them.
ABOUT = re.compile(r"(readme|licen[cs]e|changelog|citation)(\.\w+)?|dataset_infos?\.json|_success", re.IGNORECASE)
MOST_NAMED = 3  # files that a line about what is left out names


@dataclass
class FoundFiles:
    """The files of a source.

    Attributes:
        builders: files to read, by builder of `datasets` and split, in the order of their paths.
        left_out: names of the files that are not read, by the reason.
    """

    builders: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __len__(self) -> int:
        """Return the number of files to read."""
        return sum(len(files) for splits in self.builders.values() for files in splits.values())

    def notes(self) -> list[str]:
        """Return a line for each reason to leave files out, with their number and the first names."""
        lines = []
        for reason, names in sorted(self.left_out.items()):
            more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
            lines.append(f"{len(names):,} {reason} ({', '.join(sorted(names)[:MOST_NAMED])}{more})")
        return lines


def find_files(source: str, split: str) -> FoundFiles | None:
    """Return the files of a source, those of one split if its files belong to several; None if nothing is there.

    Args:
        source: path of a file; of a folder, which is searched with all folders in it; or a pattern such as
            ``data/*.jsonl``. Links are followed.
        split: split to read, with what `datasets` allows behind it, such as ``train[:10%]``.

    Raises:
        DataError: if there is no file of a kind that can be read, or none of the split.
    """
    path, found = Path(source), FoundFiles()
    if path.is_file():
        builder = kind_of(path)
        if builder is None:
            raise DataError(f"{path}: cannot read files of kind {path.suffix!r}; use one of {KINDS}")
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
        raise DataError(f"{what} {source} holds no file of a kind that can be read: {KINDS}{notes}")
    for name, files in _choose_splits(list(kinds), root, split, source, found).items():
        for file in files:
            found.builders.setdefault(kinds[file], {}).setdefault(name, []).append(file)
    return found


def kind_of(file: Path) -> str | None:
    """Return the builder of `datasets` that reads a file, by its suffix or else its content; None if none does."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compression = COMPRESSIONS.get(suffixes.pop()) if suffixes and suffixes[-1] in COMPRESSIONS else None
    if suffixes and (suffixes[-1] in BUILDERS or compression is None):
        return BUILDERS.get(suffixes[-1])
    try:
        with pa.input_stream(str(file), compression=compression) as stream:
            head = stream.read(HEAD)
    except OSError:
        return None
    if builder := next((builder for magic, builder in MAGIC.items() if head.startswith(magic)), None):
        return builder
    if b"\0" in head or not head:
        return None
    return "json" if re.match(rb'\s*(\[\s*)?\{\s*"', head) else "text"


def split_of(name: Path) -> str | None:
    """Return the split that a file's name or one of its folders' names says; None if none does.

    Args:
        name: path from the source's folder on, such as ``data/train-00000-of-00002.parquet``.
    """
    for folder in name.parts[:-1]:
        if folder.lower() in SPLITS:
            return SPLITS[folder.lower()]
    words = re.split(r"[-._0-9]+", name.name.lower())  # not blanks: "the test of time.txt" is a title
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _walk(folder: Path, root: Path, found: FoundFiles) -> Iterator[Path]:
    """Yield all files in a folder, through links too; a link back to a folder above is not followed."""
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
    """Return the builder of each file that can be read, and note the others."""
    kinds, seen = dict[Path, str](), set[Path]()
    about = any(file.suffix.lower() != ".md" for file in files)
    for file in files:
        real, kind = file.resolve(), None
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


def _choose_splits(files: list[Path], root: Path, split: str, source: str, found: FoundFiles) -> dict[str, list[Path]]:
    """Return the files of the splits that are asked for, and note the others; files of one split are taken whole."""
    splits = {file: split_of(file.relative_to(root)) for file in files}
    # "dev" and "val" are the same split, which `datasets` has to know by the word that the source uses
    asked = {SPLITS.get(word, word): word for word in re.findall(r"(?:^|\+)\s*(\w+)", split)}
    names = set(splits.values())
    if len(names) == 1:
        return {asked.get(names.pop() or "train", "train"): files}
    rest = None if "train" in names else "train"
    chosen = dict[str, list[Path]]()
    for file, name in splits.items():
        name = name or rest
        if name in asked:
            chosen.setdefault(asked[name], []).append(file)
        else:
            reason = f"of split {name}" if name else "of no split, beside files that have one"
            found.left_out[reason].append(str(file.relative_to(root)))
    if absent := [word for word in asked.values() if word not in chosen]:
        counts = Counter(name or rest or "no split" for name in splits.values())
        held = ", ".join(f"{count:,} of {name}" for name, count in sorted(counts.items()))
        raise DataError(f"{source} has no files of split {absent[0]!r}, but {held}")
    return chosen
