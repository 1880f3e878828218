"""Interfaces: readers evaluate windows, executors also train, gradient reductions sum gradients over ranks."""

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
        loss: mean cross-entropy in nats over all labels of all ranks, weighted as the data says.
        labels: number of labels.
        fresh_tokens: number of tokens read, with or without a label; tokens repeated from the previous segment do not
            count.
        learning_rate: learning rate of the step, for the first parameter group.
        gradient_norm: norm before clipping; None if DeepSpeed does not compute it.
        recall_distance: mean distance in segments of the recalled memories; None if nothing was recalled.
        recall_loss: mean cross-entropy in nats of the recall weights against the right memories; None if the data names
            none.
        skipped: whether the optimizer skipped the step because gradients were not finite.
        bad: whether the step was skipped for another reason than a too large loss scale (fp16).
        reset_rows: number of rows whose memory was not finite and was reset.
        finite: ``[rows, segments]`` bool, whether the loss is finite, for this rank's rows and all windows of the step.
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
        """Use a DeepSpeed engine, which was built around the model, for reductions and the optimizer."""

    @property
    def forward(self) -> Forward:
        """The forward pass of a segment or a batch of summaries, to be called like ``HMT.forward``."""

    def accumulate(self, passes: int, scale: float, phase: Phase) -> AbstractContextManager[None]:
        """Return a context for all backward passes of an optimizer step; afterwards the engine has the gradients.

        Args:
            passes: number of backward passes of the step.
            scale: loss scale; 1 except in fp16.
            phase: makes a context around the reduction, from the name ``reduce``.
        """

    def backward(self, scalar: Tensor) -> None:
        """Run a backward pass from a scalar loss, and add the gradients of the weights to those of the step."""

    def begin_step(self, budget: ActivationBudget) -> None:
        """Prepare for an optimizer step, after ``budget`` has chosen which segments keep their activations."""

    def step_done(self) -> None:
        """Finish an optimizer step, after the optimizer has updated the weights."""


class Reader(Protocol):
    """Runs windows through an HMT model inside a DeepSpeed engine, to evaluate the model or load weights (a typing
    Protocol).

    Attributes:
        stages: number of pipeline stages; 1 without a pipeline.
        data_ranks: number of ranks, or pipelines, that share the rows of the global batch.
        data_rank: index of this rank, or of its pipeline, among the data ranks.
        reports: whether this rank computes losses.
        settings: settings of the memory.
        device: device of this rank.
        embedding_width: width of memories, dim.
        dtype: dtype of memories.
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
        """Run a window without training.

        Args:
            window: rows of segments.
            state: memory state before the window; None at the beginning.
            options: ``mode`` (memory mode), ``instead`` (other memories to compute losses with: ``swapped``, ``none``),
                ``by_token`` (losses of tokens, not sums of rows) and ``with_logits``.

        Yields:
            The output of each segment, and the memory state after it (on a pipeline, after the window).
        """


class Executor(Reader, Protocol):
    """Trains an HMT model inside a DeepSpeed engine, and evaluates windows with it (a typing Protocol).

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        compute: ``compute`` settings; ``auto`` remains only where a measured step must decide.
        state: the memory carried from the last window to the next; None before the first.
        phase: makes a context around each part of a step, from the part's name.
    """

    precision: str
    compute: ComputeSettings
    state: MemoryState | None
    phase: Phase

    @property
    def budget(self) -> ActivationBudget:
        """Chooses which segments keep their activations, from measured GPU memory."""

    @property
    def gradients(self) -> GradientReduction:
        """Accumulates gradients over segments and reduces them over ranks."""

    def train_batch(self, windows: list[Window], flags: tuple[int, ...] = ()) -> StepOutput:
        """Run one optimizer step on consecutive windows of this rank's rows. All ranks must call it.

        Args:
            windows: the windows, on the CPU, of equally many segments on all ranks.
            flags: numbers to sum over the ranks, such as whether this rank received a stop signal.
        """

    def backward_through(self, window: Window, weight: float, recall_weight: float) -> tuple[Tensor, Tensor]:
        """Add the gradients of a window's losses to those of the step, and carry the memory to the next window.

        Args:
            window: rows of segments.
            weight: factor of the summed cross-entropy of tokens.
            recall_weight: factor of the summed auxiliary loss of the recall.

        Returns:
            ``[5]`` float64: the loss, the recall distances, the number of recalls, the recall's loss and the number of
            reset rows, summed over this rank's rows; and ``[rows, segments]`` bool, whether the loss is finite.
        """

    def backward_passes(self, windows: list[Window]) -> int:
        """Return the number of backward passes that an optimizer step on ``windows`` takes."""
