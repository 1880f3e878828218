"""Load a data source's tokens from the cache, without reading its text if files, recipe keys and tokenizer are
unchanged."""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hmt_ds import __version__
from hmt_ds.data.errors import DataError, NoDocumentsError, RowError
from hmt_ds.data.files import find_files
from hmt_ds.data.formats import Format
from hmt_ds.data.sources import read_source
from hmt_ds.data.special_tokens import why_special
from hmt_ds.data.token_files import is_intact, replacing
from hmt_ds.data.tokenize import document_lengths, open_tokens, tokenize_documents, tokenizer_content

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceTokens:
    """The tokenized documents of a data source, and what was left out of it.

    Attributes:
        tokens: One row per document with the columns `input_ids` and `length`, and `weights` if the format has them.
        files: Number of files read; None for a saved data set and one of the hub.
        left_out: A line for each reason why files or documents are left out.
        chat_template: Jinja template that conversations are rendered with; None for formats other than `messages`.
        warning: A line about special tokens, such as `</s>`, in the text of documents; None if there are none.
        dropped: Number of documents that are left out: blank, excluded by a condition, too short or too long.
    """

    tokens: Dataset
    files: int | None
    left_out: tuple[str, ...]
    chat_template: str | None = None
    warning: str | None = None
    dropped: int = 0


def read_tokens(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: Format,
    cache_dir: Path,
    processes: int = 1,
    **keys: Any,
) -> SourceTokens:
    """Load and tokenize a data source, or open its tokens from the cache.

    A record in the cache says which token files belong to the source's files, so a terabyte of unchanged text is not
    read again. Data sets of the hub have no record: the `datasets` library knows what is in its cache.

    Args:
        source: File, folder, pattern, address or name on the hub, as for `read_source`.
        tokenizer: Any tokenizer of `transformers`.
        format: How rows become tokens.
        cache_dir: Folder of the token cache.
        processes: Number of processes that tokenize.
        keys: Other arguments of `read_source`, such as `split`.

    Raises:
        DataError: The source cannot be read, does not fit the format, or the cache cannot be written.
    """
    states = file_states(source, keys.get("split", "train"))
    known = [source, keys, states, tokenizer_content(tokenizer), format.content(tokenizer), format.special_tokens]
    versions = [__version__, datasets.__version__]  # they may read the same files differently
    record = cache_dir / f"source-{hashlib.sha256(json.dumps([known, versions]).encode()).hexdigest()[:32]}.json"
    if states is not None and (found := _recorded(record)) is not None:
        for line in found.left_out:
            logger.info("%s: left out %s", source, line)
        return found
    read = read_source(source, **keys)
    try:
        tokens = tokenize_documents(read.documents, tokenizer, format=format, cache_dir=cache_dir, processes=processes)
    except RowError as error:
        raise DataError(f"{read.place(error.row)}: {error.reason}") from None
    warning = why_special(read.documents, tokenizer, read.place) if format.special_tokens is None else None
    if states is not None:
        files = [Path(file["filename"]).name for file in tokens.cache_files if file["filename"].endswith(".arrow")]
        content = {
            "tokens": files,
            "files": read.files,
            "left_out": read.left_out,
            "warning": warning,
            "dropped": read.dropped,
        }
        with suppress(OSError), replacing(record) as aside:  # in a folder of somebody else
            aside.write_text(json.dumps({"content": content, "sha256": _digest(content)}), encoding="utf-8")
    return SourceTokens(tokens, read.files, read.left_out, warning=warning, dropped=read.dropped)


def file_states(source: str, split: str) -> list[list[Any]] | None:
    """Return path, size (bytes), two times (ns) and inode of each file of a source, to notice changes.

    Args:
        source: File, folder, pattern, address, or name on the hub.
        split: Split to read, as the `datasets` library takes it.

    Returns:
        A list per file; None if the source is not made of files, as a data set of the hub.

    Raises:
        DataError: The source's files cannot be read.
    """
    path = Path(source)
    if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif found := find_files(source, split):
        files = [file for splits in found.builders.values() for some in splits.values() for file in some]
    else:
        return None
    states = [(file.resolve(), file.stat()) for file in files]
    # the time of the last change too: rsync -t, tar and cp -p keep the time of modification
    return [[str(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino] for file, state in states]


def _recorded(record: Path) -> SourceTokens | None:
    """Return the tokens that a record in the cache names; None without a record, or if it or a file is damaged."""
    try:
        read = json.loads(record.read_text(encoding="utf-8"))
        if _digest(found := read["content"]) != read["sha256"]:
            return None
        files = [record.parent / name for name in found["tokens"]]
        if files and all(map(is_intact, files)):
            about = {key: found[key] for key in ("files", "warning", "dropped")}
            return SourceTokens(open_tokens(files), left_out=tuple(found["left_out"]), **about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # ValueError: no JSON
        pass
    return None


def _digest(content: object) -> str:
    """Return the SHA-256 of a record's content, in hexadecimal."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def of_lengths(found: SourceTokens, least: int, most: int | None, source: str) -> SourceTokens:
    """Return a source's tokenized documents without those that are too short or too long.

    Args:
        found: The tokenized documents of a source.
        least: Fewest tokens of a document.
        most: Most tokens of a document; None for any number.
        source: Name of the source, for errors.

    Returns:
        The remaining documents, with a line (`left_out`) for each reason why documents are missing.

    Raises:
        DataError: No document remains.
    """
    lengths = document_lengths(found.tokens)
    short, long = lengths < least, lengths > (most or lengths.max())
    counts = {f"shorter than {least:,} tokens": short.sum(), f"longer than {most or 0:,} tokens": long.sum()}
    lines = tuple(f"{count:,} {what}" for what, count in counts.items() if count)
    keep = np.flatnonzero(~(short | long))
    if not len(keep):
        raise NoDocumentsError(
            f"min_tokens {least} and max_tokens {most} leave none of the {len(lengths):,} documents of {source}, which "
            f"have {lengths.min():,} to {lengths.max():,} tokens: widen them"
        )
    for line in lines:
        logger.info("%s: left out %s", source, line)
    dropped, tokens = len(lengths) - len(keep), found.tokens
    tokens = tokens.select(keep) if dropped else tokens
    return replace(found, tokens=tokens, left_out=found.left_out + lines, dropped=found.dropped + dropped)
