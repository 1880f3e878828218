"""Interfaces of the training engine: readers evaluate, executors also train, gradient reductions sum over the ranks."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hmt_ds.distributed.engine import Engine
from hmt_ds.memory import HMT, MemorySettings, MemoryState, SegmentOutput, Window
from hmt_ds.memory.bptt import Phase
from hmt_ds.parallel.activation_budget import ActivationBudget, Forward
from hmt_ds.parallel.settings import ComputeSettings


@dataclass(frozen=True)
class StepOutput:
    """The results of one optimizer step, over the whole global batch.

    Attributes:
        loss: mean cross-entropy in nats over all labels of all ranks, weighted by the labels' weights if the data has
            any.
        labels: number of tokens with a label in the global batch.
        fresh_tokens: number of tokens read, with or without a label; tokens repeated from the previous segment do not
            count.
        learning_rate: learning rate of the step, for the first parameter group.
        gradient_norm: norm before clipping; None if DeepSpeed does not compute it.
        recall_distance: mean distance in segments of the memories that were retrieved; None if nothing was retrieved.
        recall_loss: mean cross-entropy in nats of the retrieval weights against the right memories; None if the data
            names no right memories.
        skipped: whether the optimizer skipped the step because gradients were not finite.
        bad: whether the step was skipped for another reason than a too large loss scale (fp16).
        reset_rows: number of rows whose memory was not finite and was reset.
        finite: ``[rows, segments]`` bool, whether the loss is finite, for this rank's rows and all segments of the
            step.
        flags: numbers that the ranks gave to the step, summed over all ranks.
    """

    loss: float
    labels: int
    fresh_tokens: int
    learning_rate: float
    gradient_norm: float | None
    recall_distance: float | None
    recall_loss: float | None
    skipped: bool
    bad: bool
    reset_rows: int
    finite: Tensor
    flags: tuple[int, ...]


class GradientReduction(Protocol):
    """Accumulates gradients within an optimizer step, and reduces them over the ranks (a typing Protocol).

    Attributes:
        model: the modules that forward passes go through in training.
    """

    model: HMT

    def attach(self, engine: Engine[HMT]) -> None:
        """Use a DeepSpeed engine, which was built around the model, for reductions and the optimizer.

        Args:
            engine: the engine.
        """

    @property
    def forward(self) -> Forward:
        """The forward pass of a segment, or of a batch of summaries (tokens of retrieval queries), to be called like
        ``HMT.forward``."""

    def accumulate(self, passes: int, scale: float, phase: Phase) -> AbstractContextManager[None]:
        """Return a context for all backward passes of one optimizer step; when it ends, the engine has the gradients.

        Args:
            passes: number of backward passes of the step.
            scale: loss scale; 1 except in fp16.
            phase: times the reduction: called with the name ``reduce``, returns a context around it.
        """

    def backward(self, scalar: Tensor) -> None:
        """Run a backward pass from a scalar loss, and add the gradients of the weights to those of the step.

        Args:
            scalar: the loss of one segment, 0-dimensional.
        """

    def begin_step(self, budget: ActivationBudget) -> None:
        """Prepare for an optimizer step, such as by capturing CUDA graphs.

        Args:
            budget: the choice of segments that keep their activations in this step.
        """

    def step_done(self) -> None:
        """Finish an optimizer step, after the optimizer has updated the weights."""


class Reader(Protocol):
    """Evaluates token segments with an HMT model inside a DeepSpeed engine (a typing Protocol).

    Attributes:
        stages: number of pipeline stages; 1 without a pipeline.
        data_ranks: number of ranks (on a pipeline: of pipelines) that share the rows of the global batch.
        data_rank: index of this rank, or of its pipeline, among those that share the rows.
        reports: whether this rank computes losses.
        settings: settings of the memory.
        device: device of this rank.
        embedding_width: width of memory embeddings, dim.
        dtype: dtype of memory embeddings.
        engine: DeepSpeed's engine.
    """

    stages: int
    data_ranks: int
    data_rank: int
    reports: bool
    settings: MemorySettings
    device: torch.device
    embedding_width: int
    dtype: torch.dtype
    engine: Engine[HMT]

    def read(
        self, window: Window, state: MemoryState | None, **options: object
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Evaluate a window (the next segments of every row) without training.

        Args:
            window: the next segments of every row, on the CPU.
            state: memories from earlier segments; None at the beginning of documents.
            options: ``mode`` (memory mode), ``instead`` (other memories to compute losses with as well: ``swapped``
                between rows, or ``none``), ``by_token`` (a loss per token, not per row) and ``with_logits``.

        Yields:
            The output of each segment, and the memory state after it (on a pipeline, after the window).
        """


class Executor(Reader, Protocol):
    """Trains an HMT model inside a DeepSpeed engine, and evaluates with it (a typing Protocol).

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        compute: ``compute`` settings of the recipe; ``auto`` remains only for what is chosen from measured memory.
        state: the memories carried over to the next segments; None before the first.
        phase: times the parts of a step: called with a part's name, returns a context around it.
    """

    precision: str
    compute: ComputeSettings
    state: MemoryState | None
    phase: Phase

    @property
    def budget(self) -> ActivationBudget:
        """Chooses which segments keep their activations for the backward pass, from measured GPU memory."""

    @property
    def gradients(self) -> GradientReduction:
        """Accumulates gradients over segments and reduces them over ranks."""

    def train_batch(self, windows: list[Window], flags: tuple[int, ...] = ()) -> StepOutput:
        """Run one optimizer step on the next windows (chunks of consecutive segments) of this rank's rows.

        All ranks must call it.

        Args:
            windows: the windows, on the CPU, with the same number of segments on all ranks.
            flags: numbers to sum over the ranks, such as whether this rank received a stop signal.
        """

    def backward_through(self, window: Window, weight: float, recall_weight: float) -> tuple[Tensor, Tensor]:
        """Add the gradients of a window's losses to those of the step, and carry the memories over to the next window.

        Args:
            window: the next segments of every row (one truncated-BPTT chunk), on the CPU.
            weight: factor of the summed cross-entropy of tokens.
            recall_weight: factor of the summed auxiliary loss of memory retrieval.

        Returns:
            ``[5]`` float64, summed over this rank's rows: the loss, the distances in segments of retrieved memories,
            the number of retrievals, the auxiliary retrieval loss and the number of rows whose memory was reset; and
            ``[rows, segments]`` bool, whether the loss is finite.
        """

    def backward_passes(self, windows: list[Window]) -> int:
        """Return the number of backward passes that an optimizer step takes, which per-segment reduction counts.

        0 on a pipeline, whose backward passes are not counted.

        Args:
            windows: the step's input, chunks of consecutive segments.
        """
