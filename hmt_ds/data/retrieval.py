"""Generated retrieval documents as batches: a document is a pure function of the seed and its number."""

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
    """Return the things of training documents and those of evaluation documents, which have none in common."""
    side = math.ceil(math.sqrt(settings.keys))
    square = np.flatnonzero([adjective in ADJECTIVES[:side] and noun in NOUNS[:side] for adjective, noun in THINGS])
    chosen = np.random.default_rng(SPLIT_SEED).permutation(square)[: settings.keys]
    held_out = round(settings.keys * settings.held_out)
    return chosen[held_out:], chosen[:held_out]


def check_length(settings: RetrievalSettings, segments: int, *, held_out: bool) -> None:
    """Check that documents of this many segments are possible.

    Raises:
        DataError: They are too short for a question and its answer, or name more things than there are.
    """
    if segments < 2:
        raise DataError(f"documents of {segments} segment: a question and its answer take at least two")
    kind, named = "evaluation" if held_out else "training", split_things(settings)[held_out]
    needed = things_needed(settings.kind, segments)
    if needed > len(named):
        raise DataError(
            f"{kind} documents of {segments} segments name {needed} things, and only {len(named)} of the "
            f"{settings.keys} are for {kind}: change keys or held_out, or shorten the documents"
        )


class RetrievalDocuments:
    """The documents of a run, by number: the same whichever rank asks, and in whichever order.

    Args:
        text: The sentences in the run's tokens.
        settings: What documents tell and ask.
        segment_length: Tokens per segment; `RetrievalText.check` says whether it is enough.
        seed: Of the documents.
        held_out: Name the things that are held out, in place of those for training.
        left_out: Numbers of documents that are replaced by others.
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
        """Return token ids and labels `[segments, length]`, and targets `[segments]` as in `Batch`, all int64."""
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
        """Return what a document names; nothing that its neighbours name, as long as there are enough things.

        So the rows of a window can serve each other as negatives: of two facts about the same thing in different
        documents, the recall could not tell which one is meant.
        """
        shuffle, place = divmod(number, len(self._things) // needed)
        shuffled = np.random.default_rng([*self._seed, shuffle]).permutation(self._things)
        return shuffled[place * needed : (place + 1) * needed]


class RetrievalLoader:
    """The batches of one rank, from a position on. Each iteration begins there again.

    Every row of a window is one whole document. Rank r has rows `r * batch_size` to `(r + 1) * batch_size - 1`.

    Args:
        documents: By number.
        segments: Gives the number of segments of a window, at least 2, by how many windows of this iteration precede
            it.
        rank, world_size: Of the data-parallel group.
        batch_size: Rows per rank.
        total: End after this many documents; rows of the last window may be empty. Without end by default.
        num_workers: Processes that generate ahead; 0 generates in this process.
        state: The `position` of the last batch that was used, to go on after it.
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
    """Generates one rank's rows of a window, given the window's number and how many segments it has."""

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
