"""Plan which tokens each row reads in which segment: a pure function of the documents' lengths, equal on every rank."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hmt_ds.data.document_queue import DocumentQueue, MixBy, QueueState, SourceShare
from hmt_ds.data.errors import DataError
from hmt_ds.memory.settings import MemorySettings

Depth = int | Callable[[int], int]  # segments of every window, or of the window with a number


@dataclass(frozen=True)
class Piece:
    """The part of a document that is read in one segment: tokens `offset` to `offset + length` of the document.

    Attributes:
        document: Index of the document.
        offset: Index of the first token in the document.
        length: Number of tokens, at least 1 and at most the segment length.
        behind: Parts of other documents behind it in the same segment, in order; with each of them a document begins.
    """

    document: int
    offset: int
    length: int
    behind: tuple["Piece", ...] = ()
    """Pieces of the other documents in the same segment, in their order; each begins its document."""


@dataclass(frozen=True)
class Packing:
    """How documents share a segment, so that less of it is padding.

    Attributes:
        gap: Positions between the end of one document and the first token of the next one in the same segment.
        least: Fewest tokens of a document in the segment in which it begins, unless the whole document fits.
    """

    gap: int
    least: int

    @classmethod
    def of(cls, memory: MemorySettings) -> "Packing":
        """Return how documents may share segments with the given memory settings.

        Between two documents there must be space for the sink tokens and the memory prompt that a document's first
        segment has in front of it. The next segment rereads the last (sensory) tokens, which must be of its own
        document, hence a document has at least as many tokens in the segment in which it begins.

        Args:
            memory: Settings of the memory.
        """
        least = max(1, memory.sensory_tokens, memory.segment_length // 4)
        return cls(memory.sink_tokens + memory.prompt_tokens(), least)


@dataclass(frozen=True)
class WindowPlanState:
    """How far all rows have read their documents after a batch: enough to resume from there.

    Attributes:
        epoch: Epoch of the next document, from 0; with several sources, of the first source.
        cursor: How many documents of that epoch have been taken; less than the number of documents.
        rows: For each row, its document and the first token that it has not read; None between documents.
        sources: With several sources, how far each has been read; empty with one.
    """

    epoch: int
    cursor: int
    rows: tuple[tuple[int, int] | None, ...]
    sources: tuple[QueueState, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the reading position as JSON values, for a checkpoint."""
        rows = [None if row is None else list(row) for row in self.rows]
        values = {"epoch": self.epoch, "cursor": self.cursor, "rows": rows}
        return values | ({"sources": [asdict(source) for source in self.sources]} if self.sources else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WindowPlanState":
        """Make a reading position from the JSON values that `to_dict` returned.

        Args:
            values: The JSON values.
        """
        rows = tuple(None if row is None else (row[0], row[1]) for row in values["rows"])
        sources = tuple(QueueState(**source) for source in values.get("sources", []))
        return cls(values["epoch"], values["cursor"], rows, sources)


@dataclass(frozen=True)
class PlannedWindow:
    """What all rows of the global batch read in one window (a batch of rows times consecutive segments).

    Attributes:
        pieces: `pieces[row][segment]`, the part of a document in each segment; None for an empty segment.
        state: The reading position after this window.
    """

    pieces: list[list[Piece | None]]
    state: WindowPlanState


class WindowPlan(Iterator[PlannedWindow]):
    """Plan the batches of a run: which tokens of which document each row reads in each segment.

    A window is a batch of all ranks' rows times consecutive segments; iterating yields one plan per window, without
    tokens. All rows advance together, segment by segment. A row walks through its document, across windows; in the
    segment after its document's last one it takes the next document of the queue. Rows that need a document in the same
    segment take them in row order. The queue is one permutation of the documents per epoch, epoch after epoch; with
    several sources, each has a queue of its own, and their weights decide which is next. With a limited number of
    epochs, rows that find the queue empty get empty segments, and the plan ends after the window in which the last
    document ends.

    Args:
        lengths: Tokens of each document, `[documents]`, all above 0.
        rows: Rows of a window, the whole global batch: ranks times rows per rank.
        segments: Segments per row of a window; or a function that returns them for the n-th window of this plan, from
            0; after resuming, window 0 is the first one behind `state`.
        segment_length: Most tokens of a segment.
        seed: With the epoch's number it determines the order of an epoch; not negative.
        shuffle: False to keep the documents in their own order in every epoch.
        epochs: Number of passes over the documents; None to go on without end.
        state: Position to resume from; None to begin with the first window.
        left_out: Indices of documents to skip; a row that is in one at `state` takes the next document at once.
        sources: Number of documents and weight of each source, in the order of `lengths`; empty for a single source.
        mix_by: Whether the sources' weights count `documents` or `tokens`.
        packing: Lets a row begin its next document in the segment in which the one before ends, if it fits into the
            rest or can begin there with `packing.least` tokens. None to begin it in the next segment.

    Raises:
        DataError: There is no document, an empty one, none that is not left out, or the state does not fit the rows,
            the sources or the documents.
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
        sources: Sequence[SourceShare] = (),
        mix_by: MixBy = "tokens",
        packing: Packing | None = None,
    ) -> None:
        self._packing = packing
        self._lengths = np.asarray(lengths, dtype=np.int64)
        if not len(self._lengths) or self._lengths.min() < 1:
            empty = int((self._lengths < 1).sum())
            raise DataError(
                f"training needs at least one document and none without tokens, but {empty} of {len(self._lengths)} "
                "have none: leave these out of data.train"
            )
        self._left_out = frozenset(left_out)
        if self._left_out.issuperset(range(len(self._lengths))):
            raise DataError(
                f"all {len(self._lengths)} documents are left out, so there is nothing to read: remove some from "
                "left_out.json in the run's folder"
            )
        sources = sources or [SourceShare(len(self._lengths), 1)]
        several = len(sources) if len(sources) > 1 else 0
        state = state or WindowPlanState(0, 0, (None,) * rows, (QueueState(),) * several)
        _check_state(state, self._lengths, rows, sources)
        self._segments, self._windows, self._segment_length = segments, 0, segment_length
        self._rows = [None if row and row[0] in self._left_out else row for row in state.rows]
        self._queue = DocumentQueue(
            self._lengths,
            sources,
            mix_by,
            state.sources or (QueueState(state.epoch, state.cursor),),
            seed=seed,
            shuffle=shuffle,
            epochs=epochs,
            left_out=left_out,
        )

    def __next__(self) -> PlannedWindow:
        if self._queue.is_empty and not any(self._rows):
            raise StopIteration
        segments = self._segments if isinstance(self._segments, int) else self._segments(self._windows)
        self._windows += 1
        columns = [[self._next_piece(row) for row in range(len(self._rows))] for _ in range(segments)]
        pieces = [list(row) for row in zip(*columns, strict=True)]
        first, *others = states = self._queue.states
        state = WindowPlanState(first.epoch, first.cursor, tuple(self._rows), states if others else ())
        return PlannedWindow(pieces, state)

    def _next_piece(self, row: int) -> Piece | None:
        place = self._rows[row] or self._take_document()
        if place is None:
            return None
        piece = self._read(row, *place, self._segment_length)
        behind = tuple(self._pack(row, self._segment_length - piece.length)) if self._packing else ()
        return replace(piece, behind=behind) if behind else piece

    def _read(self, row: int, document: int, offset: int, most: int) -> Piece:
        left = int(self._lengths[document]) - offset
        piece = Piece(document, offset, min(left, most))
        self._rows[row] = (document, offset + piece.length) if piece.length < left else None
        return piece

    def _pack(self, row: int, room: int) -> Iterator[Piece]:
        """Yield pieces of the next documents that begin in the rest of a row's segment, which has `room` positions."""
        assert self._packing is not None
        while (front := self._queue.front()) is not None:  # behind one that goes on there is no room
            room -= self._packing.gap
            if room < min(int(self._lengths[front]), self._packing.least):
                return
            place = self._take_document()
            assert place is not None
            piece = self._read(row, *place, room)
            room -= piece.length
            yield piece

    def _take_document(self) -> tuple[int, int] | None:
        document = self._queue.take()
        return None if document is None else (document, 0)


def _check_state(state: WindowPlanState, lengths: np.ndarray, rows: int, sources: Sequence[SourceShare]) -> None:
    if max(len(state.sources), 1) != len(sources):
        raise DataError(
            f"the saved position is of {max(len(state.sources), 1)} sources, but the run has {len(sources)}: "
            "resume on the same data"
        )
    if len(state.rows) != rows:
        raise DataError(
            f"the saved position is of {len(state.rows)} rows, but the run has {rows} "
            "(ranks x rows per rank): resume with the same global batch"
        )
    for number, (queue, source) in enumerate(zip(state.sources, sources, strict=False)):
        if queue.cursor >= source.documents:
            raise DataError(
                f"the saved position is at document {queue.cursor} of source {number}, which has {source.documents}: "
                "resume on the same data"
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
