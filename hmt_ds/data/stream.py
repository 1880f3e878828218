"""The documents of a stream in parts: each part is tokenized while the one before it is read, and deleted later."""

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


@dataclass(frozen=True)
class StreamKeys:
    """What a stream reads.

    Attributes:
        source: Arguments of `read_source`.
        size: Rows of a part.
        lengths: Fewest and most tokens of a document; None for any number.
    """

    source: dict[str, Any]
    size: int
    lengths: tuple[int, int | None] = (1, None)


class Stream:
    """Makes and opens the parts of a stream, each a folder of the cache.

    A part is a function of its number, so it is made again if it was deleted, from the source's beginning on.

    Args:
        keys: What is read.
        tokenizer, format: As for `tokenize_documents`.
        folder: Where the parts are kept; of one run alone.
        makes: Whether this process makes parts; else it waits until another one has.
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
        """Return a part, counted from 0; None if the source has ended before it.

        Raises:
            DataError: The source cannot be read, or a document is not of the format.
            NoDocumentsError: No document of the part is read.
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

    def keep(self, numbers: set[int]) -> None:
        """Delete all parts but some, and those of what the source was before."""
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
    """Do work in a thread that does not keep the process from ending."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
