"""The data that a pipeline stage's passes work on: its layers, micro-batches of segments, and autograd graphs."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hmt_ds.memory import HMT, MemorySettings, MemoryState, Segment, Summary, Window
from hmt_ds.memory.bptt import Phase
from hmt_ds.memory.settings import Mode
from hmt_ds.parallel.pipeline.schedule import Action, Kind, micro_batches_of
from hmt_ds.parallel.pipeline.stashed_inputs import StashedInputs
from hmt_ds.parallel.pipeline.topology import Topology

Layers = Callable[[Segment | Summary, Action, Tensor | None], Tensor]


class StageGraph(NamedTuple):
    """The two ends of the autograd graph of one pass through a pipeline stage's layers.

    Attributes:
        stage_input: leaf ``[rows, positions, hidden size]`` that collects a gradient; None on the first stage, which
            embeds tokens.
        hidden: output of the stage's layers, ``[rows, positions, hidden size]``.
    """

    stage_input: Tensor | None
    hidden: Tensor


@dataclass(frozen=True)
class Stage:
    """A pipeline stage's part of the model with its settings, which stay the same during training.

    Attributes:
        model: this stage's part of the model.
        topology: stage and pipeline of this rank, with channels to its neighbours.
        hidden_size: width of the activations between stages.
        dtype: dtype of messages between stages.
        uses_dropout: whether the layers draw random numbers, which a recomputation must repeat.
    """

    model: HMT
    topology: Topology
    hidden_size: int
    dtype: torch.dtype
    uses_dropout: bool = False


@dataclass(frozen=True)
class StageWindow:
    """A window (the next segments of every row) split into micro-batches, with the settings of one stage's passes over
    it.

    Attributes:
        micro_batches: parts of the window with equally many rows each, on the stage's device.
        summary_batches: the window's rows in as many parts as each segment has summary passes (which compute retrieval
            queries).
        states: memories of earlier segments, for each micro-batch.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
        stash: keeps stage inputs from forward to backward passes.
        kept_graphs: forward passes that keep their autograd graphs instead of their inputs.
        measure: wraps the layers to record the bytes of their autograd graph.
        loss_weight: factor of the loss.
        recall_weight: factor of the auxiliary loss of memory retrieval.
        phase: times passes: called with ``summary``, ``recall`` or ``forward``, with ``backward`` for backward passes
            of all kinds, recomputation included, and within them ``wait``, for a neighbour's message; returns a
            context.
    """

    micro_batches: list[Window]
    summary_batches: list[Window]
    states: list[MemoryState]
    mode: Mode
    stash: StashedInputs
    kept_graphs: Collection[Action] = ()
    measure: Callable[[Layers], Layers] = lambda layers: layers
    loss_weight: float = 1.0
    recall_weight: float = 0.0
    phase: Phase = nullcontext

    @property
    def backward_follows(self) -> bool:
        """Whether backward passes follow the forward passes over these segments, as in training."""
        return self.stash.enabled

    def tokens_of(self, action: Action, settings: MemorySettings) -> Segment | Summary:
        """Return what a forward or backward pass runs on: a segment, or the tokens that its retrieval query is made of.

        Args:
            action: the pass.
            settings: settings of the memory.
        """
        n, b = action.segment, action.micro_batch
        if action.kind == Kind.SUMMARY:
            size = len(self.micro_batches) // len(self.summary_batches)
            tails = torch.cat([state.tail for state in self.states[b * size : (b + 1) * size]])
            return self.summary_batches[b].summary(n, n + 1, tails, settings)
        return self.micro_batches[b].segment(n, self.states[b].tail, settings)

    def targets_of(self, recall: Action) -> Tensor | None:
        """Return how many segments back the memory is that a segment should retrieve, ``[rows]`` int64; None if
        unknown.

        Args:
            recall: the recall pass of the segment.
        """
        targets = self.micro_batches[recall.micro_batch].targets
        return None if targets is None else targets[:, recall.segment]

    def rows_of(self, action: Action) -> int:
        """Return the number of rows (sequences) that a forward or backward pass runs on.

        Args:
            action: the pass.
        """
        batches = self.summary_batches if action.kind == Kind.SUMMARY else self.micro_batches
        return len(batches[0].lengths)

    def query_keys(self, summary: Action) -> list[tuple[int, int]]:
        """Return the pairs (segment, micro-batch) whose retrieval queries a summary pass computes.

        Args:
            summary: the summary pass.
        """
        group = len(self.micro_batches) // len(self.summary_batches)
        return [(summary.segment, b) for b in micro_batches_of(summary, group)]
