"""Documents put together from the windows that a training run reads, with the weight of each token in the loss."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hmt_ds.data import Batch
from hmt_ds.training.evaluation_in_run import as_window


@dataclass
class Document:
    """A document as it is read.

    Attributes:
        number: its index in the data.
        segments: the token ids of each segment, `[tokens]` int64.
        label_weights: the weight of the label at each token, which is the token behind it, `[tokens]` float32.
        done: whether its last segment has been read.
    """

    number: int
    segments: list[Tensor] = field(default_factory=list)
    label_weights: list[Tensor] = field(default_factory=list)
    done: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(map(len, self.segments))

    def weights(self, n: int) -> Tensor:
        """Return the weight of each token of segment n in the loss; 0 for the document's first, which nothing predicts.

        The weight of a segment's first token is that of the last label of the segment before it.
        """
        first = self.label_weights[n - 1][-1:] if n else torch.zeros(1)
        return torch.cat([first, self.label_weights[n][:-1]])


def first_documents(batches: Iterable[Batch], number: int) -> list[Document]:
    """Read the documents that training begins with.

    Args:
        batches: windows of one rank, in order.
        number: number of documents, at most as many as the data has.

    Returns:
        Whole documents, in the order in which their first segments are read.
    """
    found: list[Document] = []
    rows: dict[int, Document] = {}
    for batch in batches:
        window = as_window(batch)
        for n in range(len(window)):
            weights = window.label_weights(n)
            for row, length in enumerate(window.lengths[:, n].tolist()):
                if bool(window.starts[row, n]) and row in rows:
                    rows.pop(row).done = True
                if length == 0:
                    continue
                if row not in rows:
                    rows[row] = Document(int(batch.documents[row, n]))
                    found.append(rows[row])
                rows[row].segments.append(window.input_ids[row, n, :length])
                rows[row].label_weights.append(weights[row, :length])
        if len(found) >= number and all(document.done for document in found[:number]):
            break
    return found[:number]
