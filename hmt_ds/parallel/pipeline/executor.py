"""The executor on a ring of stages: the same step as on ZeRO, with another way through a window."""

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from hmt_ds.backbones import CausalLM
from hmt_ds.distributed.deepspeed_internals import mark_replicated
from hmt_ds.memory import HMT, MemoryState, SegmentOutput, Window
from hmt_ds.memory.settings import Mode
from hmt_ds.parallel.compute_choice import BY_DEFAULT, ComputeSettings, draws
from hmt_ds.parallel.gradients import ReducePerStep
from hmt_ds.parallel.pipeline.schedule import Item, pipeline_schedule, summaries_together
from hmt_ds.parallel.pipeline.stage import StagePass
from hmt_ds.parallel.pipeline.stage_budget import StageBudget
from hmt_ds.parallel.pipeline.stashed_inputs import StashedInputs
from hmt_ds.parallel.pipeline.topology import Topology
from hmt_ds.parallel.zero import ZeroExecutor

Rows = TypeVar("Rows", Window, MemoryState)


class PipelineExecutor(ZeroExecutor):
    """Runs windows through a stage of an HMT; the other stages are on other ranks.

    DeepSpeed's engine has this stage's weights, and shares their optimizer with the same stage of other pipelines
    (ZeRO-1). Gradients are summed in float32 over a step and handed to it once.

    Args:
        model: this rank's stage, from :func:`hmt_ds.parallel.pipeline.build_stage.build_stage`.
        place: of this rank.
        micro_batches: into how many parts the rows of a window are divided.
        live_inputs: how many inputs stay on the device; None for all.
        options: for :class:`ZeroExecutor`.
    """

    def __init__(
        self,
        model: HMT,
        place: Topology,
        *,
        micro_batches: int,
        live_inputs: int | None = None,
        compute: ComputeSettings = BY_DEFAULT,
        **options: Any,
    ):
        self.place, self.micro_batches, self.live_inputs = place, micro_batches, live_inputs
        self.stages, self.reports = place.stages, place.closes
        backbone = cast(CausalLM, model.backbone)
        self.hidden = backbone.config.get_text_config().hidden_size
        self.draws = draws(model)
        compute = replace(compute, reduction="step", cuda_graphs="never", leaf_layers=1)
        super().__init__(model, compute=compute, grid=place.grid, **options)
        self.room: StageBudget = StageBudget(self.compute, self.settings, self.room.depth, self.device)
        self.share_tied_weights()

    def share_tied_weights(self) -> None:
        """The embeddings that are also the head stand on the first and the last stage: both step by the same sum."""
        backbone = cast(CausalLM, self.engine.module.backbone)
        ends = (self.place.opens, self.place.closes)
        if any(ends) and backbone.config.get_text_config().tie_word_embeddings:
            weight = backbone.model.get_input_embeddings().weight
            if weight.requires_grad:
                assert isinstance(self.gradients, ReducePerStep)
                self.gradients.shared = [(dict(self.gradients.pairs)[weight], self.place.ends)]
            mark_replicated(weight, self.place.closes)  # its gradient's norm counts once, on the first stage

    def order(self, segments: int, mode: str, *, backward: bool = True, micro_batches: int | None = None) -> list[Item]:
        """What this stage does with a window."""
        parts = micro_batches or self.micro_batches
        together = self.together(segments, parts)
        return schedule_of(self.stages, segments, parts, mode, backward, together)[self.place.stage]

    def together(self, segments: int, micro_batches: int) -> int:
        """Of how many micro-batches a summary is."""
        if self.settings.mode != "hmt":
            return 1
        return summaries_together(self.stages, segments, micro_batches, self.settings.summary_share)

    def cut(self, window: Window, micro_batches: int) -> tuple[list[Window], list[Window]]:
        """The micro-batches, and the same rows as summaries read them."""
        window = window.to(self.device)
        summarised = micro_batches // self.together(len(window), micro_batches)
        return divided(window, micro_batches), divided(window, summarised)

    def backward_through(self, window: Window, weight: float) -> tuple[Tensor, Tensor]:
        """As on ZeRO; the losses are known on the last stage alone."""
        rows, mode = len(window.input_ids), self.settings.mode
        state = self.state or self.empty_state(rows, self.settings.kept_memories)
        order = self.order(len(window), mode)
        work = StagePass(
            self.gradients.model,
            self.place,
            *self.cut(window, self.micro_batches),
            divided(state, self.micro_batches),
            mode=mode,
            hidden=self.hidden,
            dtype=self.dtype,
            inputs=StashedInputs(self.live_inputs),
            keeps=self.room.keeps(order),
            watch=self.room.watch,
            weight=weight,
            draws=self.draws,
            phase=self.phase,
        )
        with cast(ReducePerStep, self.gradients).autocast:
            work.run(order)
        state = joined(list(work.states()))
        with self.phase("wait"):  # for checkpoints, which take the first stage's
            dist.broadcast(state.memories, self.place.ranks[-1], group=self.place.grid.get_pipe_parallel_group())
        anew = self.carry(state)
        totals = torch.cat([totals_of(work, self.device), anew[None] * self.reports])
        return totals, finite_of(work, len(window), self.device)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Read a window without training. Losses are the last stage's; the state is that behind the whole window."""
        self.engine.eval()
        rows, mode = len(window.input_ids), cast(Mode, options.get("mode", self.settings.mode))
        parts = max(n for n in range(1, self.micro_batches + 1) if rows % n == 0)
        work = StagePass(
            self.engine.module,
            self.place,
            *self.cut(window, parts),
            divided(state or self.empty_state(rows, self.settings.kept_memories), parts),
            mode=mode,
            hidden=self.hidden,
            dtype=self.dtype,
            inputs=StashedInputs(wanted=False),
        )
        with cast(ReducePerStep, self.gradients).autocast:
            work.run(self.order(len(window), mode, backward=False, micro_batches=parts))
        after = joined(list(work.states()))
        nothing = torch.zeros(rows, 0, self.dim, device=self.device)
        for n in range(len(window)):
            found = [work.losses[n, b] for b in range(parts)] if self.reports else [torch.zeros(rows)]
            share = [work.shares[n, b] for b in range(parts)] if (n, 0) in work.shares else [torch.zeros(rows, 0)]
            yield SegmentOutput(torch.cat(found), nothing, nothing, torch.cat(share)), after


@cache
def schedule_of(
    stages: int, segments: int, micro_batches: int, mode: str, backward: bool, together: int
) -> list[list[Item]]:
    """The same schedule is asked for in every step."""
    return pipeline_schedule(stages, segments, micro_batches, mode=mode, backward=backward, together=together)


def divided(whole: Rows, parts: int) -> list[Rows]:
    """The rows in so many parts."""
    names = [field.name for field in fields(whole)]
    pieces = {n: t.chunk(parts) for n in names if (t := getattr(whole, n)) is not None}
    return [replace(whole, **{name: piece[b] for name, piece in pieces.items()}) for b in range(parts)]


def joined(parts: list[MemoryState]) -> MemoryState:
    """The inverse of :func:`divided`."""
    return MemoryState(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(parts[0])))


def finite_of(work: StagePass, segments: int, device: torch.device) -> Tensor:
    """Whether the loss of a row's segment is finite, ``[b, s]`` bool; True where another stage knows."""
    parts = range(len(work.parts))
    if not work.losses:
        return torch.ones(sum(len(p.lengths) for p in work.parts), segments, dtype=torch.bool, device=device)
    losses = [torch.cat([work.losses[n, b] for b in parts]) for n in range(segments)]
    return torch.stack(losses, dim=1).isfinite()


def totals_of(work: StagePass, device: torch.device) -> Tensor:
    """Loss, recall distances and recalls; zeros but on the last stage. ``[3]`` float64."""
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    totals[0] = sum((loss.double().sum() for loss in work.losses.values()), totals[0])
    for share in work.shares.values():
        ages = torch.arange(share.shape[1], 0, -1, device=device, dtype=share.dtype)
        totals[1:] += torch.stack([(share * ages).sum(), (share.sum(dim=1) > 0).sum().to(share.dtype)]).double()
    return totals
