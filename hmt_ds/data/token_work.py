"""Divide the work of tokenizing: cache files (shards), units of work within them, and worker processes."""

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hmt_ds.data.pieces import OVERLAP, PIECE, spans

SHARD = 100 << 20  # bytes of text, about as many of token ids
UNIT = 1 << 20  # bytes of text
MOST_ROWS = 1000  # documents in a unit
LONG = 4 * PIECE  # bytes of a document that is tokenized in pieces
AHEAD = 3  # units per process that are begun before the first of them is needed

Result = TypeVar("Result")


@dataclass(frozen=True)
class Unit:
    """A unit of tokenizing work for one process: some whole documents, or neighbouring pieces of one long document.

    Attributes:
        shard: Number of the cache file (shard) that the result belongs to.
        first, end: Index of the first document, and of the one behind the last.
        size: Bytes of text, without overlaps between pieces.
        parts: First and end byte of each piece of the document; None for whole documents.
        overlap: Bytes that a piece shares with the one before.
    """

    shard: int
    first: int
    end: int
    size: int
    parts: list[tuple[int, int]] | None = None
    overlap: int = 0


def row_sizes(documents: Dataset) -> np.ndarray:
    """Return the bytes of text in each document, `[documents]` int64, without reading the text.

    Columns that do not hold plain text, such as lists of messages, count with their mean size.
    """
    table = documents.data
    sizes = np.zeros(len(table), np.int64)
    for column in table.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            sizes += np.asarray(pc.fill_null(pc.binary_length(column), 0), np.int64)
        else:
            sizes += column.nbytes // max(1, len(table))
    indices = documents._indices  # of a data set that other rows were left out of
    return sizes if indices is None else sizes[np.asarray(indices.column(0))]


def shard_rows(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Divide documents into shards of about 100 MiB of text; return first and end document (exclusive) of each shard.

    Args:
        sizes: Bytes of each document, `[documents]`. A shard has at least one document, however large.
    """
    starts = np.cumsum(sizes) - sizes
    firsts = np.unique(starts // SHARD, return_index=True)[1].tolist()
    return list(zip(firsts, [*firsts[1:], len(sizes)], strict=True))


def units_of(shard: int, rows: tuple[int, int], sizes: np.ndarray, cuts: bool) -> Iterator[Unit]:
    """Divide the documents of a shard (a file of the token cache) into units of about 1 MiB of text; yield them in
    order.

    Args:
        shard: The shard's number.
        rows: Index of the shard's first document, and of the one behind its last.
        sizes: Bytes of each document of the data set, `[documents]`.
        cuts: Whether documents of more than 256 KiB are divided into pieces.
    """
    first, size = rows[0], 0
    for row in range(*rows):
        long = cuts and sizes[row] > LONG
        if row > first and (long or size + sizes[row] > UNIT or row - first >= MOST_ROWS):
            yield Unit(shard, first, row, size)
            first, size = row, 0
        if long:
            yield from pieces_of(shard, row, int(sizes[row]), PIECE, OVERLAP)
            first = row + 1
        else:
            size += int(sizes[row])
    if first < rows[1]:
        yield Unit(shard, first, rows[1], size)


def pieces_of(shard: int, row: int, size: int, piece: int, overlap: int) -> Iterator[Unit]:
    """Divide one long document into units of work, each of neighbouring, overlapping pieces; yield them in order.

    Args:
        shard: Number of its shard of the token cache.
        row: Index of the document.
        size: Bytes of the document.
        piece: Bytes per piece, without the overlap.
        overlap: Bytes that a piece shares with the one before.
    """
    parts, many = spans(size, piece, overlap), max(1, UNIT // piece)
    for first in range(0, len(parts), many):
        some = parts[first : first + many]
        done = some[-1][1] - first * piece
        yield Unit(shard, row, row + 1, done, some, overlap)


def in_order(work: Callable[[Unit], Result], units: Iterable[Unit], processes: int) -> Iterator[tuple[Unit, Result]]:
    """Tokenize units of work in parallel; yield each unit with its result, in the order of the units.

    Args:
        work: Function that tokenizes one unit. Each process gets a copy once.
        units: The units: some documents, or pieces of a long one, each.
        processes: Number of worker processes; 1 works in this process.

    Raises:
        BrokenProcessPool: A worker process was killed.
    """
    if processes == 1:
        yield from ((unit, work(unit)) for unit in units)
        return
    # spawn: a fork would copy locks of threads, of Arrow and of tokenizers, in whatever state they are
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_begin, initargs=(work,))
    try:
        begun = deque[tuple[Unit, Future[Result]]]()
        for unit in itertools.chain(units, itertools.repeat(None)):
            if unit is not None:
                with _interrupts_later():  # a process may be started, which has to leave Ctrl-C to this one
                    begun.append((unit, pool.submit(_do, unit)))
            elif not begun:
                return
            if unit is None or len(begun) >= AHEAD * processes:
                oldest, result = begun.popleft()
                yield oldest, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold back SIGINT until the end of the ``with`` block; processes started within it never get SIGINT.

    Raises:
        KeyboardInterrupt: A SIGINT came within the block.
    """
    came, main = list[int](), threading.current_thread() is threading.main_thread()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which processes inherit
    # the mask is of one thread, and the signal may come to another one
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number)) if main else None
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


_work: Callable[[Unit], Any]  # of this process


def _begin(work: Callable[[Unit], Any]) -> None:
    global _work
    _work = work
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes share the cores already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do(unit: Unit) -> Any:
    return _work(unit)


def _end_with_parent() -> None:
    """Wait for the parent process to end, in whatever way, then end this worker: nobody would use its results."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
