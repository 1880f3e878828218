"""Tokenize documents once: the result is cached on disk under a hash of the documents, the tokenizer and the format."""

import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt_ds.config.value_checks import why_no_folder
from hmt_ds.data.errors import DataError, NoDocumentsError, RowError, first_line
from hmt_ds.data.formats import Format
from hmt_ds.data.pieces import OVERLAP, PIECE, NoJoin, Piece, encode_pieces, join, join_all, splits_words
from hmt_ds.data.token_files import digest_file, is_intact, lock, on_disk, remove_unfinished, sha256, write_batches
from hmt_ds.data.token_work import Unit, in_order, pieces_of, row_sizes, shard_rows, units_of

logger = logging.getLogger(__name__)

FEATURES = Features({"input_ids": datasets.List(Value("int32")), "length": Value("int64")})
WEIGHTED = Features({**FEATURES, "weights": datasets.List(Value("float32"))})
TEXT = Format()


def tokenize_documents(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    format: Format = TEXT,
    add_eos: bool = True,
    cache_dir: Path | None = None,
    processes: int = 1,
) -> Dataset:
    """Tokenize documents into `input_ids` (int32, one list per document) and `length` (tokens).

    A format whose tokens have different weights in the loss adds a column `weights` (float32, one per token). BOS is
    added where the tokenizer does so by itself. The result is cached under a hash of the documents, the tokenizer and
    the format, in one file or in shards of some 100 MB; after a kill, finished shards are kept. One process tokenizes
    while others wait. The SHA-256 of each file is beside it, and a file that does not match is written again.

    Args:
        documents: A data set with the columns of the format.
        tokenizer: Any tokenizer of `transformers`.
        format: How rows become tokens; plain text by default.
        add_eos: End each document with the tokenizer's EOS, where it has one and did not add it itself.
        cache_dir: Folder of the token cache; by default a folder in the cache of the `datasets` library.
        processes: Number of processes. With 1, this process uses the tokenizer's own threads.

    Raises:
        RowError: A document does not fit the format.
        DataError: The tokenizer does not fit the format, no document has a token, a process was killed, or the cache
            cannot be written.
    """
    format.check(tokenizer)
    cache_dir = cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hmt_ds_tokens"
    if processes > 1 and parent_process() is not None:  # a script that each of its processes would start again
        raise DataError(
            f"processes is {processes}, and values above 1 need a script with `if __name__ == '__main__':` around its "
            "work"
        )
    if reason := why_no_folder(cache_dir):
        raise DataError(f"cannot write tokens: {reason}")
    name = f"tokens-{_fingerprint(documents, tokenizer, add_eos, format)}"
    encoder = Encoder(documents, tokenizer, format, add_eos)
    try:
        return _cached(cache_dir, name, encoder, processes)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot write tokens to {cache_dir}: {first_line(error)}; free space there, or name another cache folder"
        ) from None
    except BrokenProcessPool:
        raise DataError(
            f"one of {processes} processes was killed, perhaps for lack of memory: try again with fewer; "
            "the shards that are whole are kept"
        ) from None


def open_tokens(files: list[Path]) -> Dataset:
    """Map files of the token cache into memory as one data set, without the documents that have no token.

    Args:
        files: Arrow files, in the order of their documents.

    Raises:
        DataError: No document has a token.
    """
    tokens = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
    keep = document_lengths(tokens) > 0
    if not keep.any():
        raise NoDocumentsError(
            f"the tokenizer makes no token of any document ({len(tokens):,} in all): check text and tokenizer"
        )
    return tokens if keep.all() else tokens.select(np.flatnonzero(keep))


class Encoder:
    """Tokenizes units of work (some whole documents, or pieces of a long one) when called; each process has a copy.

    Args:
        documents: A data set with the columns of the format.
        tokenizer: Any tokenizer of `transformers`.
        format: How rows become tokens.
        add_eos: Whether documents end with the tokenizer's EOS.

    Attributes:
        sizes: Bytes of each document, `[documents]` int64.
        words: Whether pieces of a long document may be joined only where a word begins; None if documents are not cut.
        schema: Columns of the result and their types.
    """

    def __init__(self, documents: Dataset, tokenizer: PreTrainedTokenizerBase, format: Format, add_eos: bool) -> None:
        self.sizes, self.words = row_sizes(documents), splits_words(tokenizer) if format.name == "text" else None
        self.schema = (WEIGHTED if format.weighted else FEATURES).arrow_schema
        self._documents, self._tokenizer, self._format = documents, tokenizer, format
        self._eos = tokenizer.eos_token_id if add_eos else None

    def __call__(self, unit: Unit) -> pa.RecordBatch | Piece | None:
        """Tokenize a unit; return rows for whole documents, or joined pieces of one; None if the pieces do not fit."""
        if unit.parts is None:
            rows = self._documents[unit.first : unit.end]
            columns = _tokenize_batch(rows, unit.first, format=self._format, tokenizer=self._tokenizer, eos=self._eos)
            return pa.RecordBatch.from_pydict(columns, self.schema)
        text = self._documents.with_format("arrow")[unit.first]["text"].chunk(0)[0].as_buffer()
        try:
            pieces = encode_pieces(
                memoryview(text).cast("B"),
                unit.parts,
                unit.overlap,
                self._tokenizer,
                split_special_tokens=self._format.split_special_tokens,
            )
            return join_all(pieces, bool(self.words))
        except NoJoin:
            return None

    def document(self, row: int, pieces: Iterator[Piece | None], folder: Path) -> Iterator[pa.RecordBatch]:
        """Yield one document that is tokenized in pieces as a single row; if pieces cannot be joined, retry with longer
        ones.

        Args:
            row: Index of the document.
            pieces: The document's tokenized pieces, in order; None for some that could not be joined.
            folder: Folder for a temporary file that holds the ids until all are known.

        Raises:
            RowError: The document has more tokens than Arrow can hold.
        """
        longer = 1
        while True:
            try:
                with on_disk(self._ended(join(_all_of(pieces), bool(self.words))), folder) as ids:
                    lists = pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids)
                    yield pa.RecordBatch.from_arrays([lists, pa.array([len(ids)])], schema=self.schema)
                return
            except NoJoin:
                longer *= 8
                units = pieces_of(0, row, int(self.sizes[row]), longer * PIECE, longer * OVERLAP)
                pieces = (result for result in map(self, units) if not isinstance(result, pa.RecordBatch))
            except OverflowError as error:
                raise RowError(row, f"it has {error}: split it into several documents") from None

    def _ended(self, parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the token ids of a document, `[tokens]` at a time, and EOS if they do not end with it."""
        last = None
        for ids in parts:
            last = ids[-1] if len(ids) else last
            yield ids
        if self._eos is not None and last != self._eos:
            yield np.asarray([self._eos])


def _all_of(pieces: Iterator[Piece | None]) -> Iterator[Piece]:
    for piece in pieces:
        if piece is None:
            raise NoJoin
        yield piece


def _cached(folder: Path, name: str, encoder: Encoder, processes: int) -> Dataset:
    """Open the files of the token cache whose names begin with `name`; first make those that are missing or damaged."""
    rows = shard_rows(encoder.sizes)
    files = [folder / f"{name}-{number:05}-of-{len(rows):05}.arrow" for number in range(1, len(rows) + 1)]
    whole = folder / f"{name}.arrow"  # the only shard, or all of them, as earlier versions wrote them
    if len(rows) == 1 or is_intact(whole):
        rows, files = [(0, len(encoder.sizes))], [whole]
    if not all(map(is_intact, files)):
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f"{name}.lock"):
            remove_unfinished(folder, name)
            _make(dict(zip(files, rows, strict=True)), encoder, processes)
    return open_tokens(files)


def _make(shards: dict[Path, tuple[int, int]], encoder: Encoder, processes: int) -> None:
    """Tokenize the documents (first and end index) of each file that is missing or damaged."""
    missing = [file for file in shards if not is_intact(file)]
    for file in filter(Path.exists, missing):
        what = "is damaged" if digest_file(file).is_file() else "has no hash to tell whether it is whole"
        logger.warning("%s %s: the documents are tokenized again", file, what)
        file.unlink()
    cuts = encoder.words is not None
    units = (
        unit for number, file in enumerate(missing) for unit in units_of(number, shards[file], encoder.sizes, cuts)
    )
    size = sum(int(encoder.sizes[slice(*shards[file])].sum()) for file in missing)
    off = not sys.stderr.isatty()
    with tqdm(total=size, unit="B", unit_scale=True, desc="Tokenizing", disable=off, dynamic_ncols=True) as bar:
        results = in_order(encoder, units, processes)
        for number, group in itertools.groupby(results, key=lambda done: done[0].shard):
            write_batches(missing[number], _batches(group, encoder, missing[number].parent, bar), encoder.schema)
            if len(shards) > 1:
                logger.info("tokenized %d of %d shards", len(shards) - len(missing) + number + 1, len(shards))


def _batches(
    results: Iterator[tuple[Unit, pa.RecordBatch | Piece | None]], encoder: Encoder, folder: Path, bar: tqdm
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one shard from the results of its units, and advance the progress bar by their bytes."""

    def counted(done: Iterator[tuple[Unit, Any]]) -> Iterator[Any]:
        for unit, result in done:
            bar.update(unit.size)
            yield result

    for (row, long), group in itertools.groupby(results, key=lambda done: (done[0].first, done[0].parts is not None)):
        if long:
            yield from encoder.document(row, counted(group), folder)
        else:
            yield from counted(group)


def document_lengths(tokens: Dataset) -> np.ndarray:
    """Return the number of tokens of each document, `[documents]` int64, without reading the tokens.

    Args:
        tokens: Tokenized documents from `tokenize_documents`.
    """
    return tokens.select_columns(["length"]).with_format("numpy")[:]["length"].astype(np.int64)


def tokens_sha256(tokens: Dataset) -> str:
    """Return the SHA-256 (hexadecimal) of all documents' token ids, and of their weights in the loss if they have any.

    Args:
        tokens: Tokenized documents from `tokenize_documents`.
    """
    digest = hashlib.sha256()
    columns = [name for name in ("input_ids", "weights") if name in tokens.column_names]
    for document in tokens.select_columns(columns).with_format("numpy"):
        ids = document["input_ids"].astype("<i4")
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        if document.get("weights") is not None:
            digest.update(document["weights"].astype("<f4").tobytes())
    return digest.hexdigest()


def _tokenize_batch(
    batch: dict[str, list[Any]], first: int, format: Format, tokenizer: PreTrainedTokenizerBase, eos: int | None
) -> dict[str, Any]:
    encoded, weights = format.encode(batch, first, tokenizer, eos)
    return {
        "input_ids": [np.asarray(ids, dtype=np.int32) for ids in encoded],
        "length": [len(ids) for ids in encoded],
        **({} if weights is None else {"weights": weights}),
    }


def _fingerprint(documents: Dataset, tokenizer: PreTrainedTokenizerBase, add_eos: bool, format: Format) -> str:
    """Return a hash (32 hexadecimal digits) of everything that the tokens depend on."""
    parts = json.dumps([documents._fingerprint, tokenizer_content(tokenizer), add_eos, *format.content(tokenizer)])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return everything that a tokenizer's ids depend on, as JSON values, to hash for a cache: its content, never its
    path."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else _python_content(tokenizer)
    content = [type(tokenizer).__name__, backend, tokenizer("").input_ids, tokenizer.eos_token_id]
    if getattr(tokenizer, "split_special_tokens", False):  # in tokenizer_config.json; the backend does not know it
        content.append("split_special_tokens")
    return content


def _python_content(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Return what a slow tokenizer's ids depend on: vocabulary, settings, and the SHA-256 of its files."""
    files = {key: Path(str(tokenizer.init_kwargs.get(key))) for key in tokenizer.vocab_files_names}
    hashes = [[key, sha256(file)] for key, file in sorted(files.items()) if file.is_file()]
    settings = {key: repr(value) for key, value in tokenizer.init_kwargs.items() if key not in {*files, "name_or_path"}}
    return [sorted(tokenizer.get_vocab().items()), sorted(settings.items()), hashes]
