"""Which document is next: one permutation per source and epoch, and the shares of several sources."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hmt_ds.data.errors import DataError

MixBy = Literal["documents", "tokens"]


@dataclass(frozen=True)
class SourceShare:
    """A source as the plan sees it: consecutive documents, and their weight.

    Attributes:
        documents: number of documents, at least 1.
        weight: share of what is read, relative to the other sources' weights; above 0.
    """

    documents: int
    weight: float


@dataclass(frozen=True)
class QueueState:
    """How far a source has been read.

    Attributes:
        epoch: The epoch that the source's next document comes from.
        cursor: How many documents of that epoch have been taken or passed over; less than the number of documents.
        taken: Documents or tokens taken so far, in all epochs; what the weights count. 0 with one source.
    """

    epoch: int = 0
    cursor: int = 0
    taken: int = 0


class SourceQueue:
    """The documents of one source, epoch after epoch.

    Args:
        first: Index of the source's first document.
        documents: Number of documents.
        number: The source's number. With seed and epoch it determines the order, so that equal sources differ.
        seed, shuffle, epochs, left_out: As for `WindowPlan`.
        state: Where to go on.
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
        """Whether no document is left; never with endless epochs, unless all documents are left out."""
        return self._epochs is not None and self.epoch >= self._epochs

    @property
    def front(self) -> int:
        """The next document, if the queue is not empty."""
        return self._first + int(self._order[self.cursor])

    def take(self, amount: int) -> int:
        """Return the next document and go on.

        Args:
            amount: what the document adds to `taken`.
        """
        document = self.front
        self.cursor += 1
        self.taken += amount
        self._pass_over()
        return document

    def _pass_over(self) -> None:
        """Move the queue's front on, to a document that is not left out."""
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
    """The documents of all sources in the order in which rows take them.

    The next document is of the source that is furthest behind its share: the one for which the middle of its next
    document, counted in what it has taken and divided by its weight, comes first. A source without documents left is
    passed over, and the others keep their proportions.

    Args:
        lengths: Tokens of each document, source after source.
        sources: The sources.
        mix_by: What the weights count.
        states: Where each source goes on.
        seed, shuffle, epochs, left_out: As for `WindowPlan`.

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
            raise DataError(f"sources {list(sources)} do not fit {len(lengths)} documents, or a weight is not above 0")
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
        """Whether no source has a document left."""
        return all(queue.is_empty for queue in self._queues)

    @property
    def states(self) -> tuple[QueueState, ...]:
        """How far each source has been read."""
        return tuple(QueueState(queue.epoch, queue.cursor, queue.taken) for queue in self._queues)

    def take(self) -> int | None:
        """Return the next document, None if there is none."""
        number = self._next()
        if number is None:
            return None
        several = len(self._queues) > 1  # of one source nothing is counted, as in the positions of earlier versions
        return self._queues[number].take(self._amount(number) if several else 0)

    def front(self) -> int | None:
        """Return the document that would be taken, None if there is none."""
        number = self._next()
        return None if number is None else self._queues[number].front

    def _next(self) -> int | None:
        """Return the number of the source that the next document is of."""
        waiting = [number for number, queue in enumerate(self._queues) if not queue.is_empty]
        return min(waiting, key=self._middle, default=None)

    def _amount(self, number: int) -> int:
        return int(self._lengths[self._queues[number].front]) if self._by_tokens else 1

    def _middle(self, number: int) -> float:
        return (self._queues[number].taken + self._amount(number) / 2) / self._weights[number]
