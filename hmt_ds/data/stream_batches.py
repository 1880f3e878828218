"""Training batches of a streamed data source, which is read part by part."""

from collections.abc import Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hmt_ds.data.batches import Batch, WindowLoader
from hmt_ds.data.describe import hash_of_order
from hmt_ds.data.errors import DataError, NoDocumentsError
from hmt_ds.data.stream import Stream, ahead
from hmt_ds.data.stream_mix import StreamMix
from hmt_ds.data.tokenize import document_lengths
from hmt_ds.data.window_plan import Depth

NOTHING_LEFT = (
    "all documents of the stream are left out, so there is nothing to read: "
    "remove some from left_out.json in the run's folder"
)
MOST_IDLE = 100  # parts in a row of which nothing is read; a mix has no end that would show it


@dataclass(frozen=True)
class Place:
    """The part of a streamed data source that is being read.

    Attributes:
        epoch: How often the whole stream was read before.
        part: Number of the part, from 0.
    """

    epoch: int = 0
    part: int = 0


class StreamLoader:
    """Iterate without end over one rank's batches from a streamed data source, or a mix, from a saved position on.

    The documents within a part are in random order; at a part's end rows without a document get empty segments until
    all rows are done. `Batch.documents` counts rows of the stream from its beginning, from 0 again in each epoch;
    those of further sources of a mix begin at multiples of 2**40.

    Args:
        stream: The streamed data source, or several.
        segments: Segments per row of each batch; or a function of the batch's number, counted over all parts.
        seed: Determines the order of documents; not negative.
        state: `Batch.position` of the last batch that was used, to go on after it; None to begin with the first one.
        left_out: Indices of documents that are not read.
        options: Other arguments of `WindowLoader`.

    Raises:
        DataError: The source cannot be read, or no longer has the part that `state` was saved in.
    """

    def __init__(
        self,
        stream: Stream | StreamMix,
        *,
        segments: Depth,
        seed: int,
        state: dict[str, Any] | None = None,
        left_out: Collection[int] = (),
        **options: Any,
    ) -> None:
        self._stream, self._segments, self._seed, self._state = stream, segments, seed, state
        self._left_out, self._options = frozenset(left_out), options

    def __iter__(self) -> Iterator[Batch]:
        state = self._state or {"epoch": 0, "part": 0, "plan": None, "hash": None}
        place, plan, windows, idle = Place(state["epoch"], state["part"]), state["plan"], 0, 0
        began = -1  # the number of windows when the epoch began
        coming = self._coming(place)
        while True:
            after = Place(place.epoch, place.part + 1)
            try:
                found = coming.result()
            except NoDocumentsError:
                if place.part == 0 or plan is not None:
                    raise
                place, coming = after, self._coming(after)
                continue
            if plan is not None and (found is None or hash_of_order(document_lengths(found[0])) != state["hash"]):
                raise DataError(
                    f"part {place.part + 1} of the stream has other documents than when the run was saved: resume on "
                    "the same files, or on the same data.train.revision of the hub"
                )
            if found is None:  # the end of the stream
                if windows == began:
                    raise DataError(NOTHING_LEFT)
                place, began = Place(place.epoch + 1), windows
                coming = self._coming(place)
                continue
            self._stream.keep({0, *range(place.part - 1, place.part + 2)})
            batches = self._batches(*found, place, plan, windows)
            first = next(batches, None)  # workers are forked before the thread begins
            idle = idle + 1 if first is None else 0
            if idle == MOST_IDLE:
                raise DataError(NOTHING_LEFT)
            coming = self._coming(after)
            while first is not None:
                windows += 1
                yield first
                first = next(batches, None)
            place, plan = after, None

    def _coming(self, place: Place) -> "Future[tuple[Dataset, np.ndarray] | None]":
        """Make and open a part in a thread; one without documents has none to be read."""
        return ahead(lambda: self._stream.documents(place.part))

    def _batches(
        self, tokens: Dataset, indices: np.ndarray, place: Place, plan: dict[str, Any] | None, done: int
    ) -> Iterator[Batch]:
        """Yield the batches of one part."""
        segments, lengths = self._segments, document_lengths(tokens)
        left_out = {number for number, document in enumerate(indices.tolist()) if document in self._left_out}
        if left_out.issuperset(range(len(lengths))):
            return
        loader = WindowLoader(
            tokens,
            segments=segments if isinstance(segments, int) else lambda window: segments(window + done),
            seed=int(np.random.SeedSequence([self._seed, place.epoch, place.part]).generate_state(1)[0]),
            epochs=1,
            state=plan,
            left_out=left_out,
            **self._options,
        )
        about = {"epoch": place.epoch, "part": place.part, "hash": hash_of_order(lengths)}
        for batch in loader:
            others = None if batch.others is None else numbered(batch.others, indices)
            position = about | {"plan": batch.position}
            yield replace(batch, documents=numbered(batch.documents, indices), others=others, position=position)


def numbered(documents: torch.Tensor, indices: np.ndarray) -> torch.Tensor:
    """Replace the numbers of documents within a part of a stream by their indices in the source; -1 (no document) stays
    -1.

    Args:
        documents: int64 tensor of any shape.
        indices: Index of each document of the part, ``[documents]``.
    """
    return torch.where(documents < 0, documents, torch.from_numpy(indices)[documents.clamp_min(0)])
