"""Which tokens each row reads when: a pure function of the documents' lengths, the same on every rank."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hmt_ds.data.errors import DataError

Depth = int | Callable[[int], int]  # segments of every window, or of the window with a number


@dataclass(frozen=True)
class Piece:
    """One segment of one document: tokens `offset` to `offset + length` of it, 0 < length <= segment length."""

    document: int
    offset: int
    length: int


@dataclass(frozen=True)
class WindowPlanState:
    """Where the plan stands between two windows.

    Attributes:
        epoch: The epoch that the next document comes from.
        cursor: How many documents of that epoch rows have taken already; less than the number of documents.
        rows: Per row the document that it is in and the first token that it has not read, None between documents.
    """

    epoch: int
    cursor: int
    rows: tuple[tuple[int, int] | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain JSON values."""
        rows = [None if row is None else list(row) for row in self.rows]
        return {"epoch": self.epoch, "cursor": self.cursor, "rows": rows}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WindowPlanState":
        """Read what `to_dict` wrote."""
        rows = tuple(None if row is None else (row[0], row[1]) for row in values["rows"])
        return cls(values["epoch"], values["cursor"], rows)


@dataclass(frozen=True)
class PlannedWindow:
    """One global batch: `pieces[row][segment]`, None for an empty segment, and the state after it."""

    pieces: list[list[Piece | None]]
    state: WindowPlanState


class WindowPlan(Iterator[PlannedWindow]):
    """The windows of a run, in order.

    All rows advance together, segment by segment. A row walks through its document, across windows; in the segment
    after its document's last one it takes the next document of the queue. Rows that need a document in the
    same segment take them in row order. The queue is one permutation of the documents per epoch, epoch after epoch.
    With a limited number of epochs, rows that find the queue empty get empty segments, and the plan ends after the
    window in which the last document ends.

    Documents that are left out are passed over in the queue, and a row that is in one takes the next document at once.

    Args:
        lengths: Tokens of each document, `[documents]`, all above 0.
        rows: Rows of a window, the whole global batch: ranks times rows per rank.
        segments: Segments per row of a window; or a function that returns them for the n-th window of this plan, from
            0: after resuming it must count from the state on.
        segment_length: Most tokens of a segment.
        seed: With the epoch's number it determines the order of an epoch; not negative.
        shuffle: False for the natural order in every epoch.
        epochs: How many times to go over the documents; without end by default.
        state: Go on from here, as if the plan had never stopped.
        left_out: Documents that are not read (any more).

    Raises:
        DataError: There is no document, an empty one, none that is not left out, or the state does not fit the rows or
            the documents.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        rows: int,
        segments: Depth,
        segment_length: int,
        seed: int,
        shuffle: bool = True,
        epochs: int | None = None,
        state: WindowPlanState | None = None,
        left_out: Collection[int] = (),
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if not len(self._lengths) or self._lengths.min() < 1:
            empty = int((self._lengths < 1).sum())
            raise DataError(
                f"a plan needs documents, none of them empty; got {len(self._lengths)}, {empty} of them empty"
            )
        self._left_out = frozenset(left_out)
        if self._left_out.issuperset(range(len(self._lengths))):
            raise DataError(f"all {len(self._lengths)} documents are left out, so there is nothing to read")
        state = state or WindowPlanState(0, 0, (None,) * rows)
        _check_state(state, self._lengths, rows)
        self._segments, self._windows, self._segment_length = segments, 0, segment_length
        self._seed, self._shuffle, self._epochs = seed, shuffle, epochs
        self._epoch, self._cursor = state.epoch, state.cursor
        self._rows = [None if row and row[0] in self._left_out else row for row in state.rows]
        self._order = self._order_of(self._epoch)
        self._pass_over()

    def __next__(self) -> PlannedWindow:
        if self._queue_is_empty() and not any(self._rows):
            raise StopIteration
        segments = self._segments if isinstance(self._segments, int) else self._segments(self._windows)
        self._windows += 1
        columns = [[self._next_piece(row) for row in range(len(self._rows))] for _ in range(segments)]
        pieces = [list(row) for row in zip(*columns, strict=True)]
        return PlannedWindow(pieces, WindowPlanState(self._epoch, self._cursor, tuple(self._rows)))

    def _next_piece(self, row: int) -> Piece | None:
        place = self._rows[row] or self._take_document()
        if place is None:
            return None
        document, offset = place
        left = int(self._lengths[document]) - offset
        piece = Piece(document, offset, min(left, self._segment_length))
        self._rows[row] = (document, offset + piece.length) if piece.length < left else None
        return piece

    def _take_document(self) -> tuple[int, int] | None:
        if self._queue_is_empty():
            return None
        document = int(self._order[self._cursor])
        self._cursor += 1
        self._pass_over()
        return document, 0

    def _pass_over(self) -> None:
        """Move the queue's front on, to a document that is not left out."""
        while not self._queue_is_empty():
            if self._cursor == len(self._order):
                self._epoch, self._cursor = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
            elif self._order[self._cursor] in self._left_out:
                self._cursor += 1
            else:
                return

    def _queue_is_empty(self) -> bool:
        return self._epochs is not None and self._epoch >= self._epochs

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(len(self._lengths))
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))


def _check_state(state: WindowPlanState, lengths: np.ndarray, rows: int) -> None:
    if len(state.rows) != rows:
        raise DataError(
            f"the saved position is of {len(state.rows)} rows, but the run has {rows} "
            "(ranks x rows per rank): resume with the same global batch"
        )
    documents = [row[0] + 1 for row in state.rows if row is not None]
    needed = max([*documents, state.cursor + 1])
    if needed > len(lengths):
        raise DataError(
            f"the saved position needs at least {needed} documents, but there are {len(lengths)}: "
            "resume on the same data"
        )
    for document, offset in filter(None, state.rows):
        if offset >= lengths[document]:
            raise DataError(
                f"the saved position is at token {offset} of document {document}, which has {lengths[document]} "
                "tokens: resume on the same data with the same tokenizer"
            )
