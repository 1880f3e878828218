"""Training batches as tensors: one rank's rows of consecutive segments, read from the tokenized documents."""

import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hmt_ds.data.document_queue import MixBy, SourceShare
from hmt_ds.data.tokenize import document_lengths
from hmt_ds.data.window_plan import Depth, Packing, Piece, WindowPlan, WindowPlanState

IGNORE_INDEX = -100  # the label that cross-entropy leaves out

# One rank's rows of a window, `[rows][segments]`, and the position after that window.
RankWindow = tuple[list[list[Piece | None]], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of consecutive segments, as tensors on the CPU: what one truncated-BPTT window reads.

    Attributes:
        input_ids: `[rows, segments, length]` int64; 0 on the padding behind a segment's tokens.
        labels: `[rows, segments, length]` int64, the next token of the document, also across the boundary between
            segments; -100 for the document's last token, on padding, and where the label's weight is 0.
        lengths: `[rows, segments]` int64, number of tokens in each segment; 0 for an empty segment.
        starts: `[rows, segments]` bool, True where a document begins, and for empty segments.
        documents: `[rows, segments]` int64, index of the document; -1 for an empty segment.
        position: How far all ranks' rows have read after this batch, as JSON values: the `state` to resume a loader
            with.
        targets: `[rows, segments]` int64, for documents generated to test memory: how many segments back the fact is
            that a segment asks for (1: the previous segment), 0 where it asks for none. None for other documents.
        weights: `[rows, segments, length]` float32, factor of each label's loss, 0 where there is no label; None where
            all labels count 1.
        parts: `[rows, segments, length]` int64, number of the document that a position belongs to, counted from 0
            within its segment; the gap in front of a document is part of it. None where no documents share a segment.
        others: `[rows, segments, documents]` int64, indices of the second and later documents of each segment, padded
            with -1; None where no documents share a segment.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor
    documents: torch.Tensor
    position: dict[str, Any]
    targets: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    parts: torch.Tensor | None = None
    others: torch.Tensor | None = None


class WindowLoader:
    """Iterate over one rank's batches (`Batch`), of documents cut into segments; every iteration begins at the same
    position.

    All ranks compute the same order of documents, so they have equally many batches, and rank r has rows `r *
    batch_size` to `(r + 1) * batch_size - 1` of each global batch. Worker processes only read tokens, so the batches do
    not depend on the number of workers.

    Args:
        tokens: Tokenized documents from `tokenize_documents`.
        segments: Segments per row of each batch; or a function of the batch's number (0 for the first one here).
        segment_length: Tokens per segment, the width of every batch.
        seed: Determines the order of the documents in each epoch.
        rank, world_size: Rank and size of the data-parallel group.
        batch_size: Rows per rank.
        shuffle: False to keep the documents in their own order in every epoch.
        epochs: Number of passes over the documents; None to go on without end.
        num_workers: Processes that read ahead; 0 reads in this process.
        state: `Batch.position` of the last batch that was used; None to begin with the first one.
        left_out: Indices of documents to skip.
        sources: Number of documents and weight of each source; empty for a single source.
        mix_by: Whether the sources' weights count `documents` or `tokens`.
        packing: How documents share a segment; None if each document begins a segment of its own.

    Attributes:
        documents_total: Number of documents.
        tokens_total: Number of tokens of all documents.

    Raises:
        DataError: On iteration: there is no document to read, or `state` does not fit the documents, rows or sources.
    """

    def __init__(
        self,
        tokens: Dataset,
        *,
        segments: Depth,
        segment_length: int,
        seed: int,
        rank: int,
        world_size: int,
        batch_size: int,
        shuffle: bool = True,
        epochs: int | None = None,
        num_workers: int = 0,
        state: dict[str, Any] | None = None,
        left_out: Collection[int] = (),
        sources: Sequence[SourceShare] = (),
        mix_by: MixBy = "tokens",
        packing: Packing | None = None,
    ) -> None:
        self._lengths = document_lengths(tokens)
        self._windows = _WindowReader(tokens, segment_length, packing.gap if packing else 0)
        self._rows = slice(rank * batch_size, (rank + 1) * batch_size)
        self._num_workers = num_workers
        self._state = None if state is None else WindowPlanState.from_dict(state)
        self._plan: dict[str, Any] = {
            "rows": world_size * batch_size,
            "segments": segments,
            "segment_length": segment_length,
            "seed": seed,
            "shuffle": shuffle,
            "epochs": epochs,
            "left_out": left_out,
            "sources": sources,
            "mix_by": mix_by,
            "packing": packing,
        }
        self.documents_total = len(self._lengths)
        self.tokens_total = int(self._lengths.sum())

    def __iter__(self) -> Iterator[Batch]:
        plan = WindowPlan(self._lengths, state=self._state, **self._plan)
        own = ((window.pieces[self._rows], window.state.to_dict()) for window in plan)
        return read_windows(self._windows, own, self._num_workers)


def read_windows(reader: TorchDataset[Batch], items: Iterator[Any], num_workers: int) -> Iterator[Batch]:
    """Yield the batch `reader[item]` for each item, in the order of the items, read ahead by worker processes.

    Args:
        reader: Makes a batch from an item.
        items: Descriptions of the batches; may be endless.
        num_workers: Number of worker processes; 0 reads in this process.
    """
    # DataLoader draws a seed for its workers: from a generator of its own, so that reading data changes no dropout.
    return iter(
        DataLoader(
            reader,
            sampler=items,
            batch_size=None,
            num_workers=num_workers,
            generator=torch.Generator(),
            worker_init_fn=outlive_sigterm,
        )
    )


def outlive_sigterm(_: int) -> None:
    """Make a DataLoader worker ignore SIGTERM, so that its rank can read batches until it has saved a checkpoint."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _others(pieces: list[list[Piece | None]]) -> torch.Tensor:
    """Return the second and later documents of each segment, `[rows, segments, documents]` int64, padded with -1."""
    behind = [[[one.document for one in piece.behind] if piece else [] for piece in row] for row in pieces]
    most = max(len(one) for row in behind for one in row)
    return torch.tensor([[one + [-1] * (most - len(one)) for one in row] for row in behind])


class _WindowReader(TorchDataset[Batch]):
    """Map-style data set whose items are one rank's rows of a window, and which returns them as a `Batch`."""

    def __init__(self, tokens: Dataset, segment_length: int, gap: int) -> None:
        self._tokens = tokens.with_format("arrow")
        self._segment_length, self._gap = segment_length, gap

    def __getitem__(self, item: RankWindow) -> Batch:
        pieces, position = item
        shape = (len(pieces), len(pieces[0]))
        input_ids = torch.zeros(*shape, self._segment_length, dtype=torch.int64)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        lengths = torch.zeros(shape, dtype=torch.int64)
        starts = torch.ones(shape, dtype=torch.bool)
        documents = torch.full(shape, -1, dtype=torch.int64)
        parts = torch.zeros_like(input_ids)
        weights = torch.zeros(input_ids.shape) if "weights" in self._tokens.column_names else None
        for place in np.ndindex(shape):
            piece = pieces[place[0]][place[1]]
            if piece is None:
                continue
            for number, one in enumerate((piece, *piece.behind)):
                begin = int(lengths[place]) + (self._gap if number else 0)
                parts[place][lengths[place] :] = number
                lengths[place] = begin + one.length
                self._fill(one, input_ids[place][begin:], labels[place][begin:], weights, (*place, slice(begin, None)))
            starts[place], documents[place] = piece.offset == 0, piece.document
        if weights is not None:
            labels[weights == 0] = IGNORE_INDEX
            weights = None if ((weights == 0) | (weights == 1)).all() else weights
        batch = Batch(input_ids, labels, lengths, starts, documents, position, weights=weights)
        return replace(batch, parts=parts, others=_others(pieces)) if parts.any() else batch

    def _fill(
        self, piece: Piece, input_ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, place: Any
    ) -> None:
        """Write one document's tokens and labels at the beginning of `input_ids` and `labels`, `[length]` each.

        Args:
            weights: `[rows, segments, length]` float32, or None if all labels count 1.
            place: Index into `weights` of the positions to write: row, segment, slice of positions.
        """
        ids = torch.from_numpy(self._read(piece, "input_ids").astype(np.int64))
        input_ids[: piece.length] = ids[: piece.length]
        labels[: len(ids) - 1] = ids[1:]
        if weights is not None:
            weights[place][: len(ids) - 1] = torch.from_numpy(self._read(piece, "weights").copy())[1:]

    def _read(self, piece: Piece, column: str) -> np.ndarray:
        """Return a column's values for a piece's tokens and the next one, `[length + 1]`; `[length]` if none is next.

        Labels and their weights are shifted by one, hence the extra token. A document without weights gets ones.
        """
        row = self._tokens[piece.document]
        values = row[column][0].values
        if values is None:
            return np.ones(min(piece.length + 1, row["length"][0].as_py() - piece.offset), dtype=np.float32)
        return values.slice(piece.offset, piece.length + 1).to_numpy()
