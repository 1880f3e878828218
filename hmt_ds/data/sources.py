"""Where documents come from: files, folders, saved data sets and the `datasets` hub. All are read by `datasets`."""

import difflib
import glob
import hashlib
import itertools
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hmt_ds.data.errors import DataError, first_line

BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# utf-8-sig reads UTF-8 with and without a byte order mark: no document should begin with one.
BUILDER_OPTIONS: dict[str, dict[str, Any]] = {"text": {"sample_by": "document", "encoding": "utf-8-sig"}}
# What `datasets` raises for a file, a name, a split or a script that it cannot load; StopIteration: an empty JSON file.
LOAD_ERRORS = (DatasetsError, OSError, RuntimeError, ValueError, StopIteration)


def load_documents(
    source: str,
    *,
    text_field: str = "text",
    split: str = "train",
    name: str | None = None,
    separator: str | None = None,
) -> Dataset:
    """Load documents as a data set with the one column "text", one row per document, none of them blank.

    Args:
        source: A .txt, .jsonl, .json or .parquet file; a folder of files of one such kind, read recursively in the
            order of their paths, without hidden ones; a folder written by `save_to_disk`; or the name of a data set
            on the hub.
        text_field: The column that holds the text.
        split: The split of a hub data set or of a saved `DatasetDict`. Files have the one split "train", of which
            `datasets` can take a part ("train[:10%]"); a saved `Dataset` is taken whole.
        name: The configuration of a hub data set.
        separator: A regular expression, matched per line (re.MULTILINE), before each match of which a .txt file is
            split into documents. The text before the first match is a document too. Without it a file is a document.

    Raises:
        DataError: The source is absent, of an unknown or mixed kind, unreadable, not UTF-8, empty, or without the text
            field.
    """
    path = Path(source)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        builder, documents = "arrow", _load_saved(path, split)
    elif path.exists():
        builder, files = _find_files(path)
        documents = _load_files(builder, files, split)
    else:
        builder, documents = "hub", _load_by_name(source, name, split)
    if name is not None and builder != "hub":
        raise DataError(f"name {name!r} is for data sets of the hub only, but {source} is here: leave it out")
    documents = _keep_text(documents, text_field, source)
    if separator is not None:
        if builder != "text":
            raise DataError(f"separator {separator!r} is for .txt files only, but {source} is none: leave it out")
        documents = _split_documents(documents, separator)
    return _drop_blank(documents, source)


def _find_files(path: Path) -> tuple[str, list[Path]]:
    """Return the builder's name and the sorted files at a path, a file or a folder."""
    kinds = ", ".join(BUILDERS)
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            raise DataError(f"{path}: cannot read files of kind {path.suffix!r}; use one of {kinds}")
        return BUILDERS[path.suffix.lower()], [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in BUILDERS and file.is_file() and not _hidden(file.relative_to(path))
    )
    counts = Counter(BUILDERS[file.suffix.lower()] for file in files)
    if not files:
        raise DataError(f"folder {path} holds no file of a kind that can be read: {kinds}")
    if len(counts) > 1:
        mix = " and ".join(f"{count} {builder}" for builder, count in sorted(counts.items()))
        raise DataError(f"folder {path} mixes {mix} files; name a folder of one kind, or one file")
    return next(iter(counts)), files


def _hidden(path: Path) -> bool:
    """Whether a name on the way begins with a dot: what an editor or a notebook put aside is no document."""
    return any(name.startswith(".") for name in path.parts)


def _load_files(builder: str, files: list[Path], split: str) -> Dataset:
    patterns = [glob.escape(str(file)) for file in files]  # `datasets` would take brackets in a path for a pattern
    options = {"data_files": patterns, "split": split, **BUILDER_OPTIONS.get(builder, {})}
    # the cache of `datasets` knows a file by its modification time, which rsync -t, tar and cp -p keep
    states = [(state.st_size, state.st_ctime_ns) for state in map(Path.stat, files)]
    options["name"] = f"files-{hashlib.sha256(str(states).encode()).hexdigest()[:16]}"
    with suppress(*LOAD_ERRORS):
        return load_dataset(builder, **options)
    try:
        return load_dataset(builder, **options, download_mode="force_redownload")  # the cache may be what is damaged
    except LOAD_ERRORS as error:
        for file in files if len(files) > 1 else []:  # the error does not name the file: find it
            _load_files(builder, [file], split)
        where = files[0] if len(files) == 1 else f"{len(files)} files like {files[0]} together"
        reason = "it is empty" if isinstance(error, StopIteration) else first_line(error.__cause__ or error)
        raise DataError(f"cannot read {where} as {builder}: {reason}") from error


def _load_saved(path: Path, split: str) -> Dataset:
    try:
        saved = load_from_disk(str(path))
    except LOAD_ERRORS as error:
        raise DataError(f"cannot read the saved data set {path}: {first_line(error)}") from error
    if not isinstance(saved, DatasetDict):
        return saved
    if split not in saved:
        raise DataError(f"the saved data set {path} has no split {split!r}; it has: {', '.join(saved)}")
    return saved[split]


def _load_by_name(source: str, name: str | None, split: str) -> Dataset:
    absent = f"{source!r} is neither a file nor a folder"
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise DataError(f"{absent}, and it cannot be the name of a data set: check the path") from None
    if Path(source).suffix.lower() in BUILDERS:
        raise DataError(f"{absent}: check the path")
    try:
        return load_dataset(source, name, split=split)
    except LOAD_ERRORS as error:
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{absent}, nor a data set that can be loaded from the hub or its cache: {reason}") from error


def _keep_text(documents: Dataset, text_field: str, source: str) -> Dataset:
    columns = documents.column_names
    if text_field not in columns:
        close = difflib.get_close_matches(text_field, columns, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{source} has no column {text_field!r}; it has: {', '.join(columns)}{hint}")
    documents = documents.select_columns([text_field])
    if text_field != "text":
        documents = documents.rename_column(text_field, "text")
    kind = documents.features["text"]
    dtype = getattr(kind, "dtype", type(kind).__name__)  # List; Json, where rows are of several kinds
    if dtype not in ("string", "large_string"):
        raise DataError(f"column {text_field!r} of {source} holds {dtype}, not text (string); name another column")
    return documents


def _split_documents(documents: Dataset, separator: str) -> Dataset:
    if not separator:
        raise DataError("separator is empty, and would match every line: leave it out")
    try:
        pattern = re.compile(separator, re.MULTILINE)
    except re.error as error:
        raise DataError(f"separator {separator!r} is not a regular expression: {error}") from error

    def split_batch(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"text": [part for text in batch["text"] for part in _split_before(pattern, text)]}

    fingerprint = hashlib.sha256(f"{documents._fingerprint} split before {separator}".encode()).hexdigest()[:32]
    return documents.map(split_batch, batched=True, batch_size=16, new_fingerprint=fingerprint)


def _split_before(pattern: re.Pattern[str], text: str) -> list[str]:
    cuts = [0, *(match.start() for match in pattern.finditer(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


def _check_utf8(texts: pa.ChunkedArray, source: str) -> None:
    """The reader of JSON takes any bytes for text, and they would fail where they are tokenized."""
    first = 0
    for chunk in texts.chunks:
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid as error:
            within = re.search(r"index (\d+)", str(error))
            which = f"document {first + int(within[1])}" if within else "a document"
            raise DataError(
                f"{source}: {which} (the first is 0) is not UTF-8: convert it, as with `iconv -f latin1 -t utf8`"
            ) from None
        first += len(chunk)


def _drop_blank(documents: Dataset, source: str) -> Dataset:
    texts = documents.with_format("arrow")[:]["text"]
    _check_utf8(texts, source)
    keep = np.asarray(pc.fill_null(pc.match_substring_regex(texts, r"\S"), False))
    if not keep.any():
        raise DataError(f"{source} holds no documents: all {len(keep)} texts are blank or absent")
    return documents if keep.all() else documents.select(np.flatnonzero(keep))
