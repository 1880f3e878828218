"""A streamed data source in parts: each is tokenized while training reads the one before, and deleted later."""

import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.errors import DataError, NoDocumentsError
from hmt_ds.data.formats import Format
from hmt_ds.data.prepared import SourceTokens, file_states, of_lengths, read_tokens
from hmt_ds.data.remote import is_remote
from hmt_ds.data.stream_rows import RowStream
from hmt_ds.data.token_files import lock, replacing
from hmt_ds.data.tokenize import tokenizer_content

logger = logging.getLogger(__name__)

DONE = "part.json"  # written last: how many rows the part has
COUNTED = "parts.json"  # beside the parts, once the source has ended: how many there are


@dataclass(frozen=True)
class StreamKeys:
    """What a stream of documents reads: the source, the size of its parts and the allowed lengths of documents.

    Attributes:
        source: Arguments of `read_source`.
        size: Rows of the source per part.
        lengths: Fewest and most tokens of a document; None for any number.
    """

    source: dict[str, Any]
    size: int
    lengths: tuple[int, int | None] = (1, None)


class Stream:
    """Tokenizes and opens the parts of a streamed data source, each a folder of the cache.

    A part depends only on its number, so one that was deleted is made again, by reading the source from its beginning.

    Args:
        keys: Which rows are read.
        tokenizer, format: Tokenizer, and how rows become tokens.
        folder: Where the parts are kept; used by one run alone.
        makes: Whether this process makes parts; otherwise it waits until another process has made them.
    """

    def __init__(
        self, keys: StreamKeys, tokenizer: PreTrainedTokenizerBase, format: Format, folder: Path, *, makes: bool = True
    ) -> None:
        self.keys, self._tokenizer, self._format, self._makes = keys, tokenizer, format, makes
        source = keys.source
        states = None if is_remote(source["source"]) else file_states(source["source"], source["split"])
        about = json.dumps([source, keys.size, states, tokenizer_content(tokenizer), format.content(tokenizer)])
        # absolute, for a thread makes the next part wherever the process may be by then
        self._folder = folder.absolute() / hashlib.sha256(about.encode()).hexdigest()[:16]
        columns = source["columns"] or {"text": source["text_field"]}
        needed = list(dict.fromkeys([*columns.values(), *(source.get("where") or {})]))
        where_from = (source["split"], source["name"], source["revision"])
        self._rows = RowStream(source["source"], needed, keys.size, *where_from)

    def part(self, number: int) -> SourceTokens | None:
        """Return the tokenized documents of one part of the stream; None if the source has ended before the part.

        Args:
            number: Number of the part, from 0.

        Raises:
            DataError: The source cannot be read, or a document does not have the expected format.
            NoDocumentsError: All documents of the part are left out.
        """
        folder = self._folder / f"{number:06}"
        while not self._makes and not (folder / DONE).exists():
            time.sleep(0.1)
        if not (folder / DONE).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with lock(self._folder / "stream.lock"):
                if not (folder / DONE).exists():
                    self._make(number, folder)
        if not json.loads((folder / DONE).read_text())["rows"]:
            return None
        found = self._open(folder)
        return of_lengths(found, *self.keys.lengths, self.keys.source["source"])

    def documents(self, number: int) -> tuple[Dataset, np.ndarray] | None:
        """Return the tokens of one part of the stream, and the indices of its documents, counted from the source's
        beginning.

        None instead if the source has ended before the part.

        Args:
            number: Number of the part, from 0.

        Raises:
            DataError: The source cannot be read, or a document does not have the expected format.
            NoDocumentsError: All documents of the part are left out.
        """
        if (found := self.part(number)) is None:
            return None
        return found.tokens, number * self.keys.size + np.arange(len(found.tokens))

    def ends_before(self, number: int) -> bool:
        """Return whether the stream's source ends before a part.

        If that is not known yet, the part is made first, or this process waits for the one that makes it.

        Args:
            number: Number of a part, from 0.
        """
        while self.count is None and not (self._folder / f"{number:06}" / DONE).exists():
            if self._makes:
                with suppress(NoDocumentsError):
                    self.part(number)
            else:
                time.sleep(0.1)
        return self.count is not None and number >= self.count

    @property
    def count(self) -> int | None:
        """Number of parts of the stream's source; None until its end has been read."""
        try:
            return int((self._folder / COUNTED).read_text())
        except FileNotFoundError:
            return None

    def keep(self, numbers: set[int]) -> None:
        """Delete all parts of the stream except some, and any parts of other sources in the stream's folder.

        Args:
            numbers: Numbers of the parts to keep.
        """
        if not self._makes:
            return
        names = {f"{number:06}" for number in numbers}
        with lock(self._folder / "stream.lock"):  # after a roll-back another thread may still make one
            for folder in self._folder.parent.glob("*/[0-9]*"):
                if folder.parent != self._folder or folder.name not in names:
                    (folder / DONE).unlink(missing_ok=True)  # first, so that nobody opens what is half deleted
                    shutil.rmtree(folder, ignore_errors=True)

    def _make(self, number: int, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        rows = self._rows.read(number)
        if len(rows):
            rows.save_to_disk(str(folder / "rows"))
            with suppress(NoDocumentsError):
                self._open(folder)
        else:
            with replacing(self._folder / COUNTED) as aside:
                aside.write_text(str(self._rows.parts()))
        with replacing(folder / DONE) as aside:
            aside.write_text(json.dumps({"rows": len(rows)}))
        logger.info("%s: tokenized %s rows, part %d", self.keys.source["source"], f"{len(rows):,}", number + 1)

    def _open(self, folder: Path) -> SourceTokens:
        keys = self.keys.source | {"source": str(folder / "rows"), "split": "train", "name": None, "revision": None}
        try:
            found = read_tokens(**keys, tokenizer=self._tokenizer, format=self._format, cache_dir=folder)
        except DataError as error:  # about rows of the source, not of a folder in the cache
            first = int(folder.name) * self.keys.size
            rows = f"{self.keys.source['source']}, rows {first:,} to {first + self.keys.size - 1:,}"
            raise type(error)(str(error).replace(keys["source"], rows)) from None
        return replace(found, chat_template=self._format.template(self._tokenizer))


def ahead(work: Callable[[], Any]) -> "Future[Any]":
    """Start a function in a daemon thread, which does not keep the process from ending, and return its future.

    Args:
        work: The function.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
