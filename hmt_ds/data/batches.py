"""Windows of the plan as tensors: one rank's rows of each, read from the tokenized documents."""

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
    """One rank's rows of a window, on the CPU.

    Attributes:
        input_ids: `[rows, segments, length]` int64; pads are 0 and stand after the segment's tokens.
        labels: `[rows, segments, length]` int64, the token that follows in the document, also across a segment's
            border; -100 after the document's last token, on pads, and where the token has weight 0.
        lengths: `[rows, segments]` int64, number of tokens of a segment; 0 for an empty one.
        starts: `[rows, segments]` bool, True where a document begins, and for empty segments.
        documents: `[rows, segments]` int64, index of the document; -1 for an empty segment.
        position: The plan's state after this window, of all ranks' rows, as JSON values.
        targets: `[rows, segments]` int64, how many segments back the fact lies that a segment needs (1: in the segment
            before), 0 where it needs none; None for documents of which nobody knows.
        weights: `[rows, segments, length]` float32, factor of each label's loss, 0 where there is no label; None where
            all labels count 1.
        parts: `[rows, segments, length]` int64, how many documents have begun within the segment up to a place, those
            in the gaps in front of them too; None where no documents share a segment.
        others: `[rows, segments, documents]` int64, indices of the documents that begin within a segment, -1 where
            there are fewer; None where none do.
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
    """The batches of one rank, from a position on. Each iteration begins there again.

    All ranks compute the same plan, so they have equally many batches, and rank r has rows
    `r * batch_size` to `(r + 1) * batch_size - 1` of each window. The plan runs in this process and workers only
    read tokens, so the batches do not depend on the number of workers.

    Args:
        tokens: What `tokenize_documents` returned.
        segment_length: Tokens per segment, the width of every batch.
        segments, seed, shuffle, epochs, left_out, sources, mix_by, packing: As for `WindowPlan`.
        rank, world_size: Of the data-parallel group.
        batch_size: Rows per rank.
        num_workers: Processes that read ahead; 0 reads in this process.
        state: The `position` of the last batch that was used, to go on after it.

    Attributes:
        documents_total: Number of documents.
        tokens_total: Number of tokens of all documents.

    Raises:
        DataError: As `WindowPlan`, when the iteration begins.
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
    """Read the items one after the other, ahead in worker processes if there are any.

    The items take the sampler's place, so the order is theirs, whichever worker reads.
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
    """A scheduler's SIGTERM comes to workers too, and the rank has yet to save: they end with the rank."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _others(pieces: list[list[Piece | None]]) -> torch.Tensor:
    """Return the documents that begin within segments, `[rows, segments, documents]`, -1 where there are fewer."""
    behind = [[[one.document for one in piece.behind] if piece else [] for piece in row] for row in pieces]
    most = max(len(one) for row in behind for one in row)
    return torch.tensor([[one + [-1] * (most - len(one)) for one in row] for row in behind])


class _WindowReader(TorchDataset[Batch]):
    """Reads the tokens of one rank's rows of a window."""

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
        """Write a piece into the beginning of tensors `[length]`, and of the weights at a place."""
        ids = torch.from_numpy(self._read(piece, "input_ids").astype(np.int64))
        input_ids[: piece.length] = ids[: piece.length]
        labels[: len(ids) - 1] = ids[1:]
        if weights is not None:
            weights[place][: len(ids) - 1] = torch.from_numpy(self._read(piece, "weights").copy())[1:]

    def _read(self, piece: Piece, column: str) -> np.ndarray:
        """Return a column of the piece's tokens and of the one after them, if the document has it.

        Labels, and so their weights, are shifted by one. Weights that a document does not have are ones.
        """
        row = self._tokens[piece.document]
        values = row[column][0].values
        if values is None:
            return np.ones(min(piece.length + 1, row["length"][0].as_py() - piece.offset), dtype=np.float32)
        return values.slice(piece.offset, piece.length + 1).to_numpy()
