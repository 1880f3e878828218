"""The executor at ZeRO stages 0 to 3: every rank runs the whole model on its own rows."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hmt_ds.distributed.deepspeed_internals import loss_scale
from hmt_ds.distributed.process_group import rank, world_size
from hmt_ds.memory import HMT, MemoryState, SegmentOutput, Window, backward_through_time, read_window
from hmt_ds.memory.bptt import Phase
from hmt_ds.parallel.activation_budget import ActivationBudget
from hmt_ds.parallel.build_engine import ExecutorOptions, build_engine
from hmt_ds.parallel.compute_choice import prepare_layers, resolve
from hmt_ds.parallel.deepspeed_config.fill import stage_of
from hmt_ds.parallel.gradients import ReducePerSegment, ReducePerStep
from hmt_ds.parallel.protocols import StepOutput
from hmt_ds.parallel.train_step import carry, empty_state, train_step


class ZeroExecutor:
    """Trains an HMT model inside a DeepSpeed engine at ZeRO stage 0 to 3; every rank runs the whole model on its rows.

    Args:
        model: a model from :func:`hmt_ds.parallel.build_hmt.build_hmt`.
        options: DeepSpeed configuration, precision, device and ``compute`` settings.
    """

    stages, reports = 1, True

    def __init__(self, model: HMT, options: ExecutorOptions):
        self.settings, self.embedding_width = model.settings, model.backbone.dim
        self.precision, self.device, self.dtype = options.precision, options.device, options.dtype
        self.data_ranks, self.data_rank = world_size(), rank()
        self.compute = resolve(options.compute, model, options.ds_config, options.device)
        self.budget = ActivationBudget(self.compute, self.settings, options.depth, options.device)
        prepare_layers(model, self.compute, stage_of(options.ds_config))
        self.gradients: ReducePerStep | ReducePerSegment
        if self.compute.reduction == "step":
            self.gradients = ReducePerStep(model, options.autocast(), self.compute.cuda_graphs == "always")
        else:
            self.gradients = ReducePerSegment(model)
        self.engine = build_engine(model, self.gradients, options, self.compute)
        self.state: MemoryState | None = None
        self.phase: Phase = nullcontext

    def train_batch(self, windows: list[Window], flags: tuple[int, ...] = ()) -> StepOutput:
        """Run one optimizer step on the next windows (chunks of consecutive segments) of this rank's rows.

        All ranks must call it.

        Args:
            windows: the windows, on the CPU, with the same number of segments on all ranks.
            flags: numbers to sum over the ranks, such as whether this rank received a stop signal.
        """
        return train_step(self, windows, flags)

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
        sums, state = backward_through_time(
            self.budget.measure(self.gradients.forward),
            self.settings,
            window if self.compute.spill else window.to(self.device),
            self.state or empty_state(self, len(window.input_ids), self.settings.kept_memories),
            weight=weight,
            recall_weight=recall_weight,
            backward=self.gradients.backward,
            plan=self.budget.plan,
            loss_scale=loss_scale(self.engine),
            phase=self.phase,
        )
        totals = [sums.loss, sums.recall_distance, sums.recalls, sums.recall_loss, carry(self, state)]
        return torch.stack([total.double() for total in totals]), sums.finite

    def backward_passes(self, windows: list[Window]) -> int:
        """Return the number of backward passes that an optimizer step takes.

        Args:
            windows: the step's input, chunks of consecutive segments.
        """
        summarised = self.settings.summarises
        return sum(self.budget.plan.backward_passes(len(w), len(w) if summarised else 0) for w in windows)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Evaluate a window (the next segments of every row) without training.

        Args:
            window: the next segments of every row, on the CPU.
            state: memories from earlier segments; None at the beginning of documents.
            options: ``mode`` (memory mode), ``instead`` (other memories to compute losses with as well: ``swapped``
                between rows, or ``none``), ``by_token`` (a loss per token, not per row) and ``with_logits``.

        Yields:
            The output of each segment, and the memory state after it.
        """
        self.engine.eval()
        state = state or empty_state(self, window.input_ids.shape[0])
        yield from read_window(self.engine, self.settings, window.to(self.device), state, **options)
