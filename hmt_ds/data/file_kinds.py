"""Tell the kind (text, JSON, CSV, Parquet, Arrow) and the split of files by their names and first bytes."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
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
ABOUT = re.compile(
    r"(readme|licen[cs]e|changelog|citation)(\.\w+)?|dataset_(infos?|dict)\.json|state\.json|_success", re.IGNORECASE
)
MOST_NAMED = 3  # files that a line about what is left out names


@dataclass
class FoundFiles:
    """The files of a data source: those to read, and those that are left out.

    Attributes:
        builders: Files to read, sorted by path: `{builder of the datasets library: {split: files}}`.
        left_out: Names of files that are not read, by the reason: `{reason: names}`.
    """

    builders: dict[str, dict[str, list[Path]]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __len__(self) -> int:
        """Return the number of files to read."""
        return sum(len(files) for splits in self.builders.values() for files in splits.values())

    def notes(self) -> list[str]:
        """Return a line for each reason why files are left out, with the number of files and the first three names."""
        lines = []
        for reason, names in sorted(self.left_out.items()):
            more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
            lines.append(f"{len(names):,} {reason} ({', '.join(sorted(names)[:MOST_NAMED])}{more})")
        return lines


def kind_of(file: Path) -> str | None:
    """Return the builder of the `datasets` library that reads a file (text, json, csv, parquet or arrow), or None.

    The suffix decides; without one, the first 4,096 bytes do.

    Args:
        file: Path of the file.
    """
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
    """Return the split in a file's name or its folders' names, `train`, `validation` or `test`; None if there is none.

    Args:
        name: Path relative to the source's folder, such as ``data/train-00000-of-00002.parquet``.
    """
    for folder in name.parts[:-1]:
        if folder.lower() in SPLITS:
            return SPLITS[folder.lower()]
    words = re.split(r"[-._0-9]+", name.name.lower())  # not blanks: "the test of time.txt" is a title
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def choose_splits(files: list[Path], root: Path, split: str, source: str, found: FoundFiles) -> dict[str, list[Path]]:
    """Return the files of the wanted splits, and note all others as left out.

    If all files belong to one split, or none has a split in its name, all of them are returned.

    Args:
        files: Paths below `root`.
        root: Folder of the source.
        split: The split to read, as the `datasets` library takes it, such as `train`, `train[:10%]`, `train+test`.
        source: Name of the source, for errors.
        found: Record of the source's files; the files that are not wanted are added to its `left_out`.

    Returns:
        The files of each split, by the split's name as `split` spells it.

    Raises:
        DataError: A wanted split has no files.
    """
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
        raise DataError(f"{source} has no files of split {absent[0]!r}, but {held}: set split to one that is there")
    return chosen
