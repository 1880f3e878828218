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
        """Run one optimizer step on consecutive windows of this rank's rows. All ranks must call it.

        Args:
            windows: the windows, on the CPU, of equally many segments on all ranks.
            flags: numbers to sum over the ranks, such as whether this rank received a stop signal.
        """
        return train_step(self, windows, flags)

    def backward_through(self, window: Window, weight: float, recall_weight: float) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of a window's losses, and carry the memory to the next window.

        Args:
            window: rows of segments.
            weight: factor of the summed cross-entropy of tokens.
            recall_weight: factor of the summed auxiliary loss of the recall.

        Returns:
            ``[5]`` float64: the loss, the recall distances, the number of recalls, the recall's loss and the number of
            reset rows, summed over this rank's rows; and ``[rows, segments]`` bool, whether the loss is finite.
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
        """Return the number of backward passes that an optimizer step on ``windows`` takes."""
        summarised = self.settings.summarises
        return sum(self.budget.plan.backward_passes(len(w), len(w) if summarised else 0) for w in windows)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Run a window without training.

        Args:
            window: rows of segments.
            state: memory state before the window; None at the beginning.
            options: ``mode`` (memory mode), ``instead`` (other memories to compute losses with: ``swapped``, ``none``),
                ``by_token`` (losses of tokens, not sums of rows) and ``with_logits``.

        Yields:
            The output of each segment, and the memory state after it.
        """
        self.engine.eval()
        state = state or empty_state(self, window.input_ids.shape[0])
        yield from read_window(self.engine, self.settings, window.to(self.device), state, **options)
