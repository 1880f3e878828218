"""The order in which documents are read: a random permutation per source and epoch, mixed by the sources' weights."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hmt_ds.data.errors import DataError

MixBy = Literal["documents", "tokens"]


@dataclass(frozen=True)
class SourceShare:
    """How much of the training data one source makes up: its number of documents and its weight.

    Attributes:
        documents: Number of documents, at least 1.
        weight: Share of the documents or tokens read, relative to the other sources' weights; above 0.
    """

    documents: int
    weight: float


@dataclass(frozen=True)
class QueueState:
    """How far one data source has been read: enough to resume there.

    Attributes:
        epoch: Epoch of the source's next document, from 0.
        cursor: How many documents of that epoch have been taken or skipped; less than the number of documents.
        taken: Documents or tokens (whichever the weights count) taken in all epochs; always 0 with a single source.
    """

    epoch: int = 0
    cursor: int = 0
    taken: int = 0


class SourceQueue:
    """The documents of one data source in the order in which they are read, epoch after epoch.

    Args:
        first: Index of the source's first document among the documents of all sources.
        documents: Number of documents of this source.
        number: The source's number, from 0; makes the order of equal sources differ.
        seed: With source and epoch it determines the order.
        shuffle: False to keep the documents in their own order in every epoch.
        epochs: Number of passes over the source; None to go on without end.
        left_out: Indices of documents to skip.
        state: How far the source has been read already.
    """

    def __init__(
        self,
        first: int,
        documents: int,
        number: int,
        *,
        seed: int,
        shuffle: bool,
        epochs: int | None,
        left_out: frozenset[int],
        state: QueueState,
    ) -> None:
        self._first, self._documents = first, documents
        self._seeds = [seed], [number] if number else []
        self._shuffle, self._epochs, self._left_out = shuffle, epochs, left_out
        if left_out.issuperset(range(first, first + documents)):
            self._epochs = 0  # nothing can be read, in no epoch
        self.epoch, self.cursor, self.taken = state.epoch, state.cursor, state.taken
        self._order = self._order_of(self.epoch)
        self._pass_over()

    @property
    def is_empty(self) -> bool:
        """Whether no document of the source is left to read; with endless epochs only if all documents are skipped."""
        return self._epochs is not None and self.epoch >= self._epochs

    @property
    def front(self) -> int:
        """Index of the next document to read, which stays in the queue; undefined if the queue is empty."""
        return self._first + int(self._order[self.cursor])

    def take(self, amount: int) -> int:
        """Remove the next document from the queue and return the document's index.

        Args:
            amount: What to add to the state's count `taken`: 1, or the document's tokens if the weights count tokens.
        """
        document = self.front
        self.cursor += 1
        self.taken += amount
        self._pass_over()
        return document

    def _pass_over(self) -> None:
        """Advance to the next document that is not left out, into later epochs if need be."""
        while not self.is_empty:
            if self.cursor == self._documents:
                self.epoch, self.cursor = self.epoch + 1, 0
                self._order = self._order_of(self.epoch)
            elif self.front in self._left_out:
                self.cursor += 1
            else:
                return

    def _order_of(self, epoch: int) -> np.ndarray:
        if not self._shuffle:
            return np.arange(self._documents)
        before, behind = self._seeds
        return np.random.default_rng([*before, epoch, *behind]).permutation(self._documents)


class DocumentQueue:
    """The documents of all data sources in the order in which they are read.

    The next document is from the source that is furthest behind its share, which has the least `(taken + amount / 2) /
    weight`, where `taken` and `amount` (of its next document) count documents or tokens. A source without documents
    left is skipped, and the others keep their proportions.

    Args:
        lengths: Tokens of each document, `[documents]`, source after source.
        sources: Number of documents and weight of each source.
        mix_by: Whether the weights count `documents` or `tokens`.
        states: How far each source has been read already.
        seed: With source and epoch it determines the order.
        shuffle: False to keep the documents in their own order in every epoch.
        epochs: Number of passes over each source; None to go on without end.
        left_out: Indices of documents to skip.

    Raises:
        DataError: The sources do not add up to the documents, or a weight is not above 0.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        sources: Sequence[SourceShare],
        mix_by: MixBy,
        states: Sequence[QueueState],
        *,
        seed: int,
        shuffle: bool,
        epochs: int | None,
        left_out: Collection[int],
    ) -> None:
        total = sum(source.documents for source in sources)
        if total != len(lengths) or any(source.documents < 1 or not source.weight > 0 for source in sources):
            raise DataError(
                f"sources {list(sources)} must have {len(lengths)} documents together (they have {total}), "
                "and each a weight above 0"
            )
        self._lengths, self._by_tokens = lengths, mix_by == "tokens"
        self._weights = [source.weight for source in sources]
        self._queues, first = [], 0
        for number, (source, state) in enumerate(zip(sources, states, strict=True)):
            queue = SourceQueue(
                first,
                source.documents,
                number,
                seed=seed,
                shuffle=shuffle,
                epochs=epochs,
                left_out=frozenset(left_out),
                state=state,
            )
            self._queues.append(queue)
            first += source.documents

    @property
    def is_empty(self) -> bool:
        """Whether no data source has a document left to read."""
        return all(queue.is_empty for queue in self._queues)

    @property
    def states(self) -> tuple[QueueState, ...]:
        """How far each data source has been read, in the order of the sources."""
        return tuple(QueueState(queue.epoch, queue.cursor, queue.taken) for queue in self._queues)

    def take(self) -> int | None:
        """Remove the next document to read from its source's queue and return its index; None if no source has one
        left."""
        number = self._next()
        if number is None:
            return None
        several = len(self._queues) > 1  # of one source nothing is counted, as in the positions of earlier versions
        return self._queues[number].take(self._amount(number) if several else 0)

    def front(self) -> int | None:
        """Return the index of the next document to read, which stays in the queue; None if no source has one left."""
        number = self._next()
        return None if number is None else self._queues[number].front

    def _next(self) -> int | None:
        """Return the number of the source that the next document is from; None if no source has a document left."""
        waiting = [number for number, queue in enumerate(self._queues) if not queue.is_empty]
        return min(waiting, key=self._middle, default=None)

    def _amount(self, number: int) -> int:
        return int(self._lengths[self._queues[number].front]) if self._by_tokens else 1

    def _middle(self, number: int) -> float:
        return (self._queues[number].taken + self._amount(number) / 2) / self._weights[number]
