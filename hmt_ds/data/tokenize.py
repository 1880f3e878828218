"""Documents to token ids, once: the result is kept on disk under a name that says what it was made from."""

import hashlib
import json
import logging
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from hmt_ds.config.value_checks import why_no_folder
from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.formats import Format

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
    num_proc: int | None = None,
) -> Dataset:
    """Tokenize documents into `input_ids` (int32, one list per document) and `length` (tokens).

    A format whose tokens have different weights in the loss adds a column `weights` (float32, one list per document,
    one weight per token). BOS is added where the tokenizer does so by itself. The result is cached under the documents'
    fingerprint and the tokenizer's content, so it outlives the process and changes with either. `datasets` writes to a
    temporary file and renames it: a killed process leaves no torn cache, and several processes may do the same work at
    once. The file's SHA-256 is beside it, and a file that does not match is made again.

    Args:
        documents: A data set with the columns of the format.
        tokenizer: Any tokenizer of `transformers`.
        format: How rows become tokens.
        add_eos: End each document with the tokenizer's EOS, where it has one and did not add it itself.
        cache_dir: Where to keep the result; a folder in the cache of `datasets` by default.
        num_proc: Number of processes.

    Raises:
        DataError: A document or the tokenizer does not fit the format, no document has a token, or the cache cannot be
            written.
    """
    format.check(tokenizer)
    cache_dir = cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hmt_ds_tokens"
    if reason := why_no_folder(cache_dir):
        raise DataError(f"tokens cannot be kept: {reason}")
    fingerprint = _fingerprint(documents, tokenizer, add_eos, format)
    options: dict[str, Any] = {
        "batch_size": 16,  # documents are long: a novel is 200,000 tokens
        "writer_batch_size": 16,
        "fn_kwargs": {"format": format, "tokenizer": tokenizer, "eos": tokenizer.eos_token_id if add_eos else None},
        "features": WEIGHTED if format.weighted else FEATURES,
        "num_proc": num_proc,
        "new_fingerprint": fingerprint,
    }
    tokens, lengths = _map_cached(documents, cache_dir / f"tokens-{fingerprint}.arrow", options)
    keep = lengths > 0
    if not keep.any():
        raise DataError(f"the tokenizer makes no token of any of the {len(tokens)} documents: check text and tokenizer")
    return tokens if keep.all() else tokens.select(np.flatnonzero(keep))


def _map_cached(documents: Dataset, file: Path, options: dict[str, Any]) -> tuple[Dataset, np.ndarray]:
    """Tokenize documents into a file, or read it if it is there; one that is damaged is made again.

    Returns:
        The tokens, and the number of tokens of each document.

    Raises:
        DataError: if the file cannot be written.
    """

    def attempt() -> tuple[Dataset, np.ndarray]:
        file.parent.mkdir(parents=True, exist_ok=True)
        tokens = documents.map(
            _tokenize_batch,
            batched=True,
            with_indices=True,
            remove_columns=documents.column_names,
            load_from_cache_file=True,
            cache_file_name=str(file),
            desc="Tokenizing",
            **options,
        )
        return tokens, document_lengths(tokens)

    try:
        if file.is_file():
            if _is_intact(file):
                with suppress(OSError, pa.ArrowException):
                    return attempt()
            logger.warning("%s is damaged: the documents are tokenized again", file)
            file.unlink(missing_ok=True)
        made = attempt()
        if file.is_file():  # several processes write a file each
            aside = file.with_suffix(f".{uuid.uuid4().hex}")
            aside.write_text(_sha256(file), encoding="ascii")
            aside.replace(_digest_file(file))
        return made
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"tokens cannot be kept in {file.parent}: {first_line(error)}") from None


def _is_intact(file: Path) -> bool:
    """Tell whether a cache has the content that was written; the caches of earlier versions have no hash to say so.

    Arrow does not notice a flipped bit: it would change a token without a word, or end the interpreter.
    """
    digest = _digest_file(file)
    return not digest.is_file() or digest.read_text(encoding="ascii", errors="replace") == _sha256(file)


def _digest_file(file: Path) -> Path:
    """Return the file that holds the SHA-256 of a cache."""
    return file.with_suffix(".sha256")


def _sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def document_lengths(tokens: Dataset) -> np.ndarray:
    """Return the number of tokens of each document, `[documents]` int64, without reading the tokens."""
    return tokens.select_columns(["length"]).with_format("numpy")[:]["length"].astype(np.int64)


def tokens_sha256(tokens: Dataset) -> str:
    """Return the SHA-256 of all documents' token ids, and of their weights if they have any."""
    digest = hashlib.sha256()
    columns = [name for name in ("input_ids", "weights") if name in tokens.column_names]
    for document in tokens.select_columns(columns).with_format("numpy"):
        ids = document["input_ids"].astype("<i4")
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        if "weights" in document:
            digest.update(document["weights"].astype("<f4").tobytes())
    return digest.hexdigest()


def _tokenize_batch(
    batch: dict[str, list[Any]], numbers: list[int], format: Format, tokenizer: PreTrainedTokenizerBase, eos: int | None
) -> dict[str, Any]:
    encoded, weights = format.encode(batch, numbers[0], tokenizer, eos)
    return {
        "input_ids": [np.asarray(ids, dtype=np.int32) for ids in encoded],
        "length": [len(ids) for ids in encoded],
        **({} if weights is None else {"weights": weights}),
    }


def _fingerprint(documents: Dataset, tokenizer: PreTrainedTokenizerBase, add_eos: bool, format: Format) -> str:
    """Hash what the tokens depend on: of the tokenizer its content, never its path."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    content = [type(tokenizer).__name__, backend, tokenizer("").input_ids, tokenizer.eos_token_id]
    if getattr(
        tokenizer, "split_special_tokens", False
    ):  # a setting of tokenizer_config.json that the backend does not know
        content.append("split_special_tokens")
    parts = json.dumps([documents._fingerprint, content, add_eos, *format.content(tokenizer)])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]
