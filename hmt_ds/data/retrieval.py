"""Batches of documents generated to test memory: facts, and questions on them in later segments.

Each document is a pure function of a seed and the document's number.
"""

import math
from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from hmt_ds.data.batches import IGNORE_INDEX, Batch, read_windows
from hmt_ds.data.errors import DataError
from hmt_ds.data.retrieval_plan import NOTHING, plan_document, things_needed
from hmt_ds.data.retrieval_text import RetrievalText
from hmt_ds.data.retrieval_words import ADJECTIVES, NOUNS, THINGS
from hmt_ds.data.settings import RetrievalSettings

SPLIT_SEED = 0  # which things are held out: the same in every run, so that no seed leaks them into training


def split_things(settings: RetrievalSettings) -> tuple[np.ndarray, np.ndarray]:
    """Divide the things that generated facts are about (such as "velvet blanket") into those for training and for
    evaluation.

    Args:
        settings: What the generated documents tell and ask.

    Returns:
        Two disjoint arrays `[things]` int64 of indices into `THINGS`, the pairs of an adjective and a noun; equal for
        every seed.
    """
    side = math.ceil(math.sqrt(settings.keys))
    square = np.flatnonzero([adjective in ADJECTIVES[:side] and noun in NOUNS[:side] for adjective, noun in THINGS])
    chosen = np.random.default_rng(SPLIT_SEED).permutation(square)[: settings.keys]
    held_out = round(settings.keys * settings.held_out)
    return chosen[held_out:], chosen[:held_out]


def check_length(settings: RetrievalSettings, segments: int, *, held_out: bool) -> None:
    """Check that generated documents of facts and questions can have this many segments.

    Args:
        settings: What the documents tell and ask.
        segments: Segments per document.
        held_out: Whether the documents are for evaluation, which name things that no training document names.

    Raises:
        DataError: The documents are too short for a question and its answer, or need more things than there are.
    """
    if segments < 2:
        raise DataError(
            f"documents of {segments} segment are too short: with a question and its answer they need at least 2: "
            "raise training.bptt_depth or evaluation.retrieval_segments"
        )
    kind, named = "evaluation" if held_out else "training", split_things(settings)[held_out]
    needed = things_needed(settings.kind, segments)
    if needed > len(named):
        raise DataError(
            f"{kind} documents of {segments} segments name {needed} different things, but only {len(named)} of the "
            f"{settings.keys} are for {kind}: raise data.retrieval.keys, change held_out, or shorten the documents"
        )


class RetrievalDocuments:
    """Generates documents with facts and questions by number, the same on every rank and in whatever order.

    Args:
        text: Writes sentences as token ids.
        settings: What documents tell and ask.
        segment_length: Tokens per segment; `text.check` says whether it is long enough.
        seed: Determines all documents.
        held_out: Whether documents name the things held out for evaluation instead of those for training.
        left_out: Numbers of documents to replace by other ones.
    """

    def __init__(
        self,
        text: RetrievalText,
        settings: RetrievalSettings,
        *,
        segment_length: int,
        seed: int,
        held_out: bool = False,
        left_out: Collection[int] = (),
    ) -> None:
        self.segment_length = segment_length
        self._text, self._settings, self._left_out = text, settings, frozenset(left_out)
        self._seed, self._things = [seed, int(held_out)], split_things(settings)[held_out]

    def document(self, number: int, segments: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Generate one document of facts and questions on earlier facts.

        Args:
            number: Number of the document, from 0.
            segments: Segments of the document, at least 2.

        Returns:
            Token ids and labels, `[segments, length]` int64 (-100 where no label), and targets, `[segments]` int64: how
            many segments back the fact is that a segment's answer needs, 0 where it has no answer.
        """
        random = np.random.default_rng([*self._seed, number, int(number in self._left_out)])
        named = self._things_of(number, things_needed(self._settings.kind, segments))
        plan = plan_document(self._settings.kind, segments, named, self._settings.values, random)
        ids = np.empty((segments, self.segment_length), dtype=np.int64)
        labels = np.full_like(ids, IGNORE_INDEX)
        for n in range(segments):
            ids[n], scored = self._text.segment(plan, n, self.segment_length, random)
            for at in scored:
                labels[n, at - 1] = ids[n, at]
        answers = np.append(NOTHING, plan.asked[:-1])
        return ids, labels, np.where(answers == NOTHING, 0, np.arange(segments) - answers)

    def _things_of(self, number: int, needed: int) -> np.ndarray:
        """Return the things that a document names, `[needed]`; neighbouring documents name other ones, if there are
        enough.

        So the rows of a window can be each other's negatives: the recall could not tell apart two facts about one
        thing.
        """
        shuffle, place = divmod(number, len(self._things) // needed)
        shuffled = np.random.default_rng([*self._seed, shuffle]).permutation(self._things)
        return shuffled[place * needed : (place + 1) * needed]


class RetrievalLoader:
    """Iterate over one rank's batches of generated documents; every iteration begins at the same saved position.

    Every row of a batch is one whole document. Rank r has rows `r * batch_size` to `(r + 1) * batch_size - 1` of the
    global batch.

    Args:
        documents: Generates documents by number.
        segments: Function from a batch's number to how many segments it has, at least 2. Batch 0 is the first that this
            loader yields, also after a resume.
        rank, world_size: Rank and size of the data-parallel group.
        batch_size: Rows per rank.
        total: Number of documents; rows of the last batch may be empty. None to go on without end.
        num_workers: Processes that generate ahead; 0 generates in this process.
        state: `Batch.position` of the last batch that was used; None to begin with the first one.
    """

    def __init__(
        self,
        documents: RetrievalDocuments,
        *,
        segments: Callable[[int], int],
        rank: int,
        world_size: int,
        batch_size: int,
        total: int | None = None,
        num_workers: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._rows, self._total = world_size * batch_size, total
        self._writer = _WindowWriter(documents, range(rank * batch_size, (rank + 1) * batch_size), self._rows, total)
        self._segments, self._num_workers = segments, num_workers
        self._first = 0 if state is None else int(state["window"])

    def __iter__(self) -> Iterator[Batch]:
        windows = count(self._first) if self._total is None else range(self._first, -(-self._total // self._rows))
        items = ((number, self._segments(number - self._first)) for number in windows)
        return read_windows(self._writer, items, self._num_workers)


class _WindowWriter(TorchDataset[Batch]):
    """Map-style data set that generates one rank's rows of a window, given the window's number and its segments."""

    def __init__(self, documents: RetrievalDocuments, own: range, rows: int, total: int | None) -> None:
        self._documents, self._own, self._rows, self._total = documents, own, rows, total

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        window, segments = item
        numbers = torch.tensor([window * self._rows + row for row in self._own])
        if self._total is not None:
            numbers[numbers >= self._total] = -1
        shape = (len(numbers), segments)
        input_ids = torch.zeros(*shape, self._documents.segment_length, dtype=torch.int64)
        labels, targets = torch.full_like(input_ids, IGNORE_INDEX), torch.zeros(shape, dtype=torch.int64)
        for b in torch.nonzero(numbers >= 0).flatten().tolist():
            written = self._documents.document(int(numbers[b]), segments)
            input_ids[b], labels[b], targets[b] = (torch.from_numpy(array) for array in written)
        documents = numbers[:, None].expand(shape).contiguous()
        starts = documents < 0
        starts[:, 0] = True
        lengths = torch.where(documents < 0, 0, self._documents.segment_length)
        return Batch(input_ids, labels, lengths, starts, documents, {"window": window + 1}, targets)
