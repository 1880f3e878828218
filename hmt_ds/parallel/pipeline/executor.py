"""The executor of a pipeline stage, which trains this rank's layers; the optimizer step is
in `parallel/train_step.py`."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hmt_ds.backbones import CausalLM
from hmt_ds.distributed.deepspeed_internals import mark_replicated
from hmt_ds.memory import HMT, MemoryState, SegmentOutput, Window
from hmt_ds.memory.bptt import Phase
from hmt_ds.parallel.build_engine import ExecutorOptions, build_engine
from hmt_ds.parallel.compute_choice import prepare_layers, resolve, uses_dropout
from hmt_ds.parallel.deepspeed_config.fill import stage_of
from hmt_ds.parallel.gradients import ReducePerStep
from hmt_ds.parallel.pipeline.runner import StageRunner, hidden_size, join_rows, split_rows
from hmt_ds.parallel.pipeline.stage import StagePass
from hmt_ds.parallel.pipeline.stage_budget import StageBudget
from hmt_ds.parallel.pipeline.stage_window import StageWindow
from hmt_ds.parallel.pipeline.stashed_inputs import StashedInputs
from hmt_ds.parallel.pipeline.topology import Topology
from hmt_ds.parallel.protocols import StepOutput
from hmt_ds.parallel.train_step import carry, empty_state, train_step


class PipelineExecutor:
    """Trains one pipeline stage of an HMT model; the other stages are on other ranks.

    DeepSpeed's engine holds the stage's weights and shards their optimizer states over the ranks with the same stage of
    other pipelines (ZeRO-1). Gradients are accumulated in float32 over a step and reduced once.

    Args:
        model: stage of this rank, from :func:`hmt_ds.parallel.pipeline.build_stage.build_stage`.
        topology: stage and pipeline of this rank.
        options: DeepSpeed configuration, precision and device.
        micro_batches: number of micro-batches that the rows of a batch are split into.
        live_inputs: number of stage inputs kept on the device until the backward pass, older ones are offloaded to the
            host; None for all.
    """

    def __init__(
        self,
        model: HMT,
        topology: Topology,
        options: ExecutorOptions,
        *,
        micro_batches: int,
        live_inputs: int | None = None,
    ):
        self.topology, self.live_inputs = topology, live_inputs
        self.stages, self.reports = topology.stages, topology.is_last
        self.data_ranks, self.data_rank = topology.pipelines, topology.pipeline
        self.settings, self.embedding_width = model.settings, model.backbone.dim
        self.precision, self.device, self.dtype = options.precision, options.device, options.dtype
        self.runner = StageRunner(
            topology,
            self.settings,
            micro_batches,
            hidden_size(model),
            self.dtype,
            self.device,
            uses_dropout=uses_dropout(model),
        )
        # The engine sees no backward pass of a stage, only the sums; CUDA graphs capture whole segments, not stages.
        compute = replace(options.compute, reduction="step", cuda_graphs="never", leaf_layers=1)
        self.compute = resolve(compute, model, options.ds_config, options.device)
        self.budget = StageBudget(self.compute, self.settings, options.depth, options.device)
        prepare_layers(model, self.compute, stage_of(options.ds_config))
        self.gradients = ReducePerStep(model, options.autocast())
        self.engine = build_engine(model, self.gradients, options, self.compute, topology.grid)
        self.state: MemoryState | None = None
        self.phase: Phase = nullcontext
        self.share_tied_weights()

    def share_tied_weights(self) -> None:
        """Sum the gradients of tied embeddings and head over the first and the last stage before every optimizer step.

        Each of the two stages has a copy of the weight, and equal gradients keep the copies equal. Does nothing if the
        embeddings are not tied or not trained.
        """
        backbone = cast(CausalLM, self.engine.module.backbone)
        has_copy = self.topology.is_first or self.topology.is_last
        if has_copy and backbone.config.get_text_config().tie_word_embeddings:
            weight = backbone.model.get_input_embeddings().weight
            if weight.requires_grad:
                # ALL-REDUCE between the first and the last stage, once per step (ReducePerStep.deliver): the gradient
                # of the weight as embedding and as head. Both copies take the same optimizer step and stay equal.
                self.gradients.tied = [(dict(self.gradients.pairs)[weight], self.topology.first_and_last)]
            mark_replicated(weight, self.topology.is_last)  # its gradient's norm counts once, on the first stage

    def train_batch(self, windows: list[Window], flags: tuple[int, ...] = ()) -> StepOutput:
        """Run one optimizer step on the next windows (chunks of consecutive segments) of this pipeline's rows.

        All ranks must call it.

        Args:
            windows: the windows, on the CPU, with the same number of segments on all ranks.
            flags: numbers to sum over the ranks, such as whether this rank received a stop signal.
        """
        return train_step(self, windows, flags)

    def backward_passes(self, windows: list[Window]) -> int:
        """Return how many backward passes of an optimizer step go through DeepSpeed's engine: always 0 on a pipeline.

        Args:
            windows: unused.
        """
        return 0

    def backward_through(self, window: Window, weight: float, recall_weight: float) -> tuple[Tensor, Tensor]:
        """Add the gradients of a window's losses to this stage's sums, and carry the memories over to the next window.

        Args:
            window: the next segments of every row (one truncated-BPTT chunk), on the CPU.
            weight: factor of the summed cross-entropy of tokens.
            recall_weight: factor of the summed auxiliary loss of memory retrieval.

        Returns:
            ``[5]`` float64, summed over this rank's rows: the loss, the distances in segments of retrieved memories,
            the number of retrievals, the auxiliary retrieval loss (these four are 0 except on the last stage) and the
            number of rows whose memory was reset; and ``[rows, segments]`` bool, whether the loss is finite.
        """
        mode = self.settings.mode
        state = self.state or empty_state(self, len(window.input_ids), self.settings.kept_memories)
        order = self.runner.order(len(window), mode)
        work = self.runner.stage_pass(
            self.gradients.model,
            StageWindow(
                *self.runner.split(window, self.runner.micro_batches),
                states=split_rows(state, self.runner.micro_batches),
                mode=mode,
                stash=StashedInputs(self.live_inputs),
                kept_graphs=self.budget.choose_graphs(order),
                measure=self.budget.measure,
                loss_weight=weight,
                recall_weight=recall_weight,
                phase=self.phase,
            ),
        )
        with self.gradients.autocast:
            work.run(order)
        state = join_rows(list(work.final_states()))
        with self.phase("wait"):
            # BROADCAST from the last stage to all stages of the pipeline: the memories after the window. Training
            # does not need them there, but checkpoints take the first stage's.
            dist.broadcast(state.memories, self.topology.ranks[-1], group=self.topology.grid.get_pipe_parallel_group())
        reset_rows = carry(self, state)
        totals = torch.cat([totals_of(work, self.device), reset_rows[None] * self.reports])
        return totals, finite_of(work, len(window), self.device)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Evaluate a window (the next segments of every row) without training, together with the other stages' ranks.

        Args:
            window: the next segments of every row, on the CPU.
            state: memories from earlier segments; None at the beginning of documents.
            options: ``mode`` (memory mode), ``instead`` (other memories to compute losses with as well: ``swapped``
                between rows, or ``none``) and ``by_token`` (a loss per token, not per row).

        Yields:
            The output of each segment, which has losses on the last stage only, and the memory state after the window.
        """
        self.engine.eval()
        state = state or empty_state(self, len(window.input_ids), self.settings.kept_memories)
        yield from self.runner.evaluate(self.engine.module, window, state, self.gradients.autocast, **options)


def finite_of(work: StagePass, segments: int, device: torch.device) -> Tensor:
    """Return whether each row's loss on each segment is finite, ``[rows, segments]`` bool; True on pipeline stages that
    compute no loss.

    Args:
        work: this stage's finished passes over a window of segments.
        segments: number of segments of the window.
        device: device of the result.
    """
    batches = work.micro_batches
    if not work.losses:
        return torch.ones(sum(len(b.lengths) for b in batches), segments, dtype=torch.bool, device=device)
    losses = [torch.cat([work.losses[n, b] for b in range(len(batches))]) for n in range(segments)]
    return torch.stack(losses, dim=1).isfinite()


def totals_of(work: StagePass, device: torch.device) -> Tensor:
    """Return a pipeline stage's losses and retrieval statistics, summed over rows and segments; zeros except on the
    last stage.

    Args:
        work: this stage's finished passes over a window of segments.
        device: device of the result.

    Returns:
        ``[4]`` float64: loss in nats, distances in segments of retrieved memories, number of retrievals, and auxiliary
        retrieval loss in nats.
    """
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    totals[0] = sum((loss.double().sum() for loss in work.losses.values()), totals[0])
    for weights in work.recall_weights.values():
        ages = torch.arange(weights.shape[1], 0, -1, device=device, dtype=weights.dtype)
        recalls = (weights.sum(dim=1) > 0).sum().to(weights.dtype)
        totals[1:3] += torch.stack([(weights * ages).sum(), recalls]).double()
    totals[3] = sum((loss.double().sum() for loss in work.recall_losses.values()), totals[3])
    return totals
