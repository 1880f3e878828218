"""What is shown of documents: segments as runs of text whose tokens weigh alike, and a histogram of lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hmt_ds.memory import MemorySettings
from hmt_ds.preview.documents import Document


class Run(NamedTuple):
    """Text of consecutive tokens with the same weight in the loss.

    Attributes:
        text: the text.
        weight: weight of each of its tokens in the loss: 0 for none, 1 for a whole one.
    """

    text: str
    weight: float


@dataclass(frozen=True)
class Reading:
    """One segment, as the model reads it.

    Attributes:
        number: of the segment, from 1 on.
        first: position of its first token in the document, from 0 on.
        tokens: number of its own tokens.
        shared: whether other documents are in the segment, too.
        in_loss: number of its tokens with a weight in the loss.
        before: what is read in front of the tokens, such as "memory 16".
        sensory: text of the last tokens of the segment before, which are read again.
        runs: its own text.
        behind: what is read behind the tokens.
    """

    number: int
    first: int
    tokens: int
    shared: bool
    in_loss: int
    before: list[str]
    sensory: str
    runs: list[Run]
    behind: list[str]

    @property
    def title(self) -> str:
        """Heading: number of the segment, positions of its tokens in the document, and how many are in the loss."""
        last = self.first + self.tokens - 1
        shared = ", with other documents" if self.shared else ""
        return f"segment {self.number}: tokens {self.first:,} to {last:,}, {self.in_loss:,} in the loss{shared}"


@dataclass(frozen=True)
class Shown:
    """One document, as it is shown.

    Attributes:
        name: the document, and the source that it is from.
        tokens, segments, in_loss: its numbers of tokens, of segments, and of tokens with a weight in the loss.
        readings: the segments that are shown; None stands for those between the first and the last ones.
    """

    name: str
    tokens: int
    segments: int
    in_loss: int
    readings: list[Reading | None]

    @property
    def size(self) -> str:
        """The numbers of tokens and segments, as text."""
        segments = f"{self.segments:,} segments" if self.segments > 1 else "1 segment"
        return f"{self.tokens:,} tokens in {segments}, {self.in_loss:,} in the loss"

    @property
    def weights(self) -> set[float]:
        """The weights of all shown tokens."""
        return {run.weight for reading in self.readings if reading for run in reading.runs}


class Bar(NamedTuple):
    """A row of the histogram of document lengths.

    Attributes:
        segments: lengths in segments, such as ``3 to 4``.
        documents: number of documents whose length is in this range.
        share: number of documents as a fraction (0 to 1) of the largest row's.
    """

    segments: str
    documents: int
    share: float


def show(
    document: Document, name: str, settings: MemorySettings, tokenizer: PreTrainedTokenizerBase, most: int
) -> Shown:
    """Return what is shown of a document.

    Args:
        document: a whole document.
        name: what it is called.
        settings: of the memory.
        tokenizer: decodes the tokens.
        most: number of segments to show, half of them the last ones.
    """
    count = len(document.parts)
    head = count if count <= most else most - most // 2
    chosen: list[int | None] = list(range(head))
    if count > head:
        chosen += [None, *range(count - most // 2, count)]
    readings = [None if n is None else read(document, n, settings, tokenizer) for n in chosen]
    in_loss = sum(int((document.weights(n) > 0).sum()) for n in range(count))
    return Shown(name, document.tokens, count, in_loss, readings)


def read(document: Document, n: int, settings: MemorySettings, tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Return a segment of a document as the model reads it: its text, and what is read in front of and behind it.

    Args:
        document: a whole document.
        n: index of the segment.
        settings: settings of the memory.
        tokenizer: decodes the tokens.
    """
    part, weights, k = document.parts[n], document.weights(n), settings.sensory_tokens
    tail = document.parts[n - 1].ids[-k:] if n and k else part.ids[:0]
    before = ["sink"] * settings.sink_tokens
    if prompt := settings.prompt_tokens():
        before.append(f"memory {prompt}" if n else f"initial memory {prompt}")
    behind = [f"write {settings.write_tokens()}"] if settings.write_tokens() and part.place.last else []
    first = sum(len(one.ids) for one in document.parts[:n])
    in_loss = int((weights > 0).sum())
    sensory, *runs = runs_of(tail, part.ids, weights, tokenizer)
    return Reading(n + 1, first, len(part.ids), part.place.shared, in_loss, before, sensory.text, runs, behind)


def runs_of(tail: Tensor, ids: Tensor, weights: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[Run]:
    """Return the text of the tokens before a segment ``[k]``, and of its own ``[t]``, cut where weights ``[t]`` change.

    Every text is what it adds to the text before it, so that blanks between tokens come out as they do in the document.
    """
    ends = [0, *(np.flatnonzero(np.diff(weights.numpy())) + 1).tolist(), len(ids)]
    both, runs, before = torch.cat([tail, ids]), [], ""
    for end in ends:
        text = tokenizer.decode(both[: len(tail) + end], clean_up_tokenization_spaces=False)
        runs.append(Run(text[len(before) :], float(weights[end - 1]) if end else 0.0))
        before = text
    return runs


def histogram(lengths: Sequence[int] | np.ndarray, segment_length: int) -> list[Bar]:
    """Count the documents that have 1, 2, 3 to 4, 5 to 8, ... segments; empty rows only between others.

    Args:
        lengths: tokens of each document.
        segment_length: tokens of a segment.
    """
    segments = -(-np.asarray(lengths, dtype=np.int64) // segment_length)
    powers = np.ceil(np.log2(np.maximum(segments, 1))).astype(int)
    counts = np.bincount(powers)
    bars = []
    for power in range(powers.min(), len(counts)):
        first, last = 2**power // 2 + 1, 2**power
        name = f"{last:,}" if power < 2 else f"{first:,} to {last:,}"
        bars.append(Bar(name, int(counts[power]), float(counts[power] / counts.max())))
    return bars


def padding(lengths: Sequence[int] | np.ndarray, segment_length: int) -> float:
    """Return the fraction (0 to 1) of positions that hold padding, because a document's last segment is short.

    Args:
        lengths: tokens of each document.
        segment_length: tokens of a segment.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    return 1 - float(lengths.sum() / (-(-lengths // segment_length) * segment_length).sum())
