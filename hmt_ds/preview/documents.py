"""Assemble whole documents from the batches that a training run reads, with the weight of each token in the loss."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from hmt_ds.data import Batch
from hmt_ds.training.evaluation_in_run import as_window


class Place(NamedTuple):
    """Where a document is within one segment of a batch row.

    Attributes:
        number: index of the document in the data.
        begins: whether the document's first token is in this segment.
        columns: positions of the document's tokens in the segment.
        shared: whether other documents are in the segment.
        last: whether no other document follows in the segment; only the last document's memory is kept.
    """

    number: int
    begins: bool
    columns: slice
    shared: bool
    last: bool


class Part(NamedTuple):
    """The tokens of a document in one segment.

    Attributes:
        ids: token ids, ``[tokens]`` int64.
        label_weights: weight in the loss of the label at each token, which is the next token, ``[tokens]`` float32.
        place: where the document is within the segment.
    """

    ids: Tensor
    label_weights: Tensor
    place: Place


@dataclass
class Document:
    """A training document, as far as it has been read from batches.

    Attributes:
        number: index of the document in the data.
        parts: the document's tokens in each of its segments.
        done: whether the document's last segment has been read.
    """

    number: int
    parts: list[Part] = field(default_factory=list)
    done: bool = False

    @property
    def tokens(self) -> int:
        """Number of the document's tokens that batches have brought so far, of all its segments."""
        return sum(len(part.ids) for part in self.parts)

    def weights(self, n: int) -> Tensor:
        """Return the weight in the loss of each token of a segment, ``[tokens]`` float32; 0 for the document's first
        token.

        Labels are the next tokens: the weight of a segment's first token is that of the last label of the previous
        segment.

        Args:
            n: index of the segment in the document.
        """
        first = self.parts[n - 1].label_weights[-1:] if n else torch.zeros(1)
        return torch.cat([first, self.parts[n].label_weights[:-1]])


def first_documents(batches: Iterable[Batch], number: int, gap: int) -> list[Document]:
    """Read the documents that training begins with.

    Args:
        batches: batches of one rank, in order.
        number: number of documents, at most as many as the data has.
        gap: positions in front of a document that begins behind another one in the same segment.

    Returns:
        Whole documents, in the order in which their first segments are read.
    """
    found: list[Document] = []
    rows: dict[int, Document] = {}
    for batch in batches:
        window = as_window(batch)
        for n in range(len(window)):
            weights = window.label_weights(n)
            for row in range(len(weights)):
                if bool(batch.starts[row, n]) and row in rows:
                    rows.pop(row).done = True
                for place in places(batch, row, n, gap):
                    if place.begins:
                        if row in rows:
                            rows[row].done = True
                        rows[row] = Document(place.number)
                        found.append(rows[row])
                    part = (batch.input_ids[row, n, place.columns], weights[row, place.columns], place)
                    rows[row].parts.append(Part(*part))
        if len(found) >= number and all(document.done for document in found[:number]):
            break
    return found[:number]


def places(batch: Batch, row: int, n: int, gap: int) -> Iterator[Place]:
    """Yield where each document is in one segment of a batch row, from left to right; nothing if the segment is empty.

    Args:
        batch: the batch.
        row: index of the row.
        n: index of the segment.
        gap: positions in front of a document that begins behind another one in the same segment.
    """
    length, begins, number = int(batch.lengths[row, n]), bool(batch.starts[row, n]), int(batch.documents[row, n])
    if length == 0:
        return
    counts = [length] if batch.parts is None else batch.parts[row, n, :length].bincount().tolist()
    at = 0
    for j, count in enumerate(counts):
        if j:
            assert batch.others is not None
            number = int(batch.others[row, n, j - 1])
        columns = slice(at + (gap if j else 0), at + count)
        yield Place(number, begins or j > 0, columns, len(counts) > 1, j == len(counts) - 1)
        at += count
