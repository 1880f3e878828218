"""Split batches into micro-batches, order forward and backward passes, and evaluate, on one pipeline stage."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TypeVar, cast

import torch

from hmt_ds.backbones import CausalLM
from hmt_ds.memory import HMT, MemorySettings, MemoryState, SegmentOutput, Window
from hmt_ds.memory.boundaries import BoundariesInstead, Instead
from hmt_ds.memory.settings import Mode
from hmt_ds.parallel.pipeline.schedule import Action, pipeline_schedule, summary_group_size
from hmt_ds.parallel.pipeline.stage import StagePass
from hmt_ds.parallel.pipeline.stage_window import Stage, StageWindow
from hmt_ds.parallel.pipeline.stashed_inputs import StashedInputs
from hmt_ds.parallel.pipeline.topology import Topology

Rows = TypeVar("Rows", Window, MemoryState)


@dataclass
class StageRunner:
    """Splits batches into micro-batches, orders their passes and evaluates them on this rank's pipeline stage.

    For training and for evaluation.

    Attributes:
        topology: stage and pipeline of this rank.
        settings: settings of the memory.
        micro_batches: number of micro-batches that the rows of a batch are split into.
        hidden_size: width of the activations between stages.
        dtype: dtype of all messages between stages.
        device: device of this rank.
        uses_dropout: whether the model draws random numbers in training.
    """

    topology: Topology
    settings: MemorySettings
    micro_batches: int
    hidden_size: int
    dtype: torch.dtype
    device: torch.device
    uses_dropout: bool = False

    def order(
        self, segments: int, mode: str, *, backward: bool = True, micro_batches: int | None = None
    ) -> list[Action]:
        """Return this stage's forward and backward passes over a window of segments, in the order in which they run.

        Args:
            segments: number of segments of the window.
            mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
            backward: whether backward passes follow, as in training.
            micro_batches: number of micro-batches; None for the configured number.
        """
        micro_batches = micro_batches or self.micro_batches
        group = self.summary_group(segments, micro_batches)
        return schedule_of(self.topology.stages, segments, micro_batches, mode, backward, group)[self.topology.stage]

    def summary_group(self, segments: int, micro_batches: int) -> int:
        """Return how many micro-batches share one summary pass (a forward pass that computes the queries of memory
        retrieval).

        Args:
            segments: number of segments that the pipeline schedule covers.
            micro_batches: number of micro-batches that the rows are split into.
        """
        if not self.settings.summarises:
            return 1
        return summary_group_size(self.topology.stages, segments, micro_batches, self.settings.summary_share)

    def split(self, window: Window, micro_batches: int) -> tuple[list[Window], list[Window]]:
        """Split a window (the next segments of every row) by rows into micro-batches, and into one part per summary
        pass.

        A summary pass computes the queries of memory retrieval.

        Args:
            window: the next segments of every row.
            micro_batches: number of micro-batches, which divides the number of rows.

        Returns:
            The micro-batches, and the parts for summary passes, each of which may cover several micro-batches.
        """
        window = window.to(self.device)
        summary_batches = micro_batches // self.summary_group(len(window), micro_batches)
        return split_rows(window, micro_batches), split_rows(window, summary_batches)

    def stage_pass(self, model: HMT, window: StageWindow) -> StagePass:
        """Return an object that runs this stage's forward and backward passes over one window of segments.

        Args:
            model: this rank's stage.
            window: the window split into micro-batches, with the settings of the passes.
        """
        return StagePass(Stage(model, self.topology, self.hidden_size, self.dtype, self.uses_dropout), window)

    @torch.no_grad()
    def evaluate(
        self,
        model: HMT,
        window: Window,
        state: MemoryState,
        autocast: AbstractContextManager[object],
        *,
        mode: Mode | None = None,
        instead: Sequence[Instead] = (),
        by_token: bool = False,
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Evaluate a window (the next segments of every row) without training, together with the other stages' ranks.

        Args:
            model: this rank's stage.
            window: the next segments of every row.
            state: memories from earlier segments.
            autocast: context of the forward passes.
            mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none); None
                for the configured one.
            instead: other memories for which losses are computed too: ``swapped`` (another row's), ``none``.
            by_token: whether losses are of each token instead of summed per row.

        Yields:
            The output of each segment, which has losses on the last stage only, and the memory state after the window.
        """
        mode, window = mode or self.settings.mode, window.to(self.device)
        rows = len(window.input_ids)
        # an evaluation batch may have fewer rows than a training batch, and must split evenly
        count = max(n for n in range(1, self.micro_batches + 1) if rows % n == 0)
        parts, states = self.split(window, count), split_rows(state, count)
        stage_window = StageWindow(*parts, states=states, mode=mode, stash=StashedInputs(enabled=False))
        order = self.order(len(window), mode, backward=False, micro_batches=count)
        own, *others = (self.stage_pass(model, stage_window) for _ in range(1 + len(instead)))
        with autocast:
            own.run(order)
            for which, other in zip(instead, others, strict=True):
                slices = [slice(b * rows // count, (b + 1) * rows // count) for b in range(count)]
                other.boundaries = [BoundariesInstead(which, own.boundaries, window, part) for part in slices]
                other.run(order)
        after = join_rows(list(own.final_states()))
        no_prompt = torch.zeros(rows, 0, model.backbone.dim, device=self.device)
        for n in range(len(window)):
            loss, *more = (losses_of(work, n, by_token) for work in (own, *others))
            weights = [own.recall_weights.get((n, b), torch.zeros(rows // count, 0)) for b in range(count)]
            loss_instead = torch.stack(more) if more else None
            recalled, no_loss = torch.cat(weights), torch.zeros(rows, device=self.device)
            yield SegmentOutput(loss, no_prompt, no_prompt, recalled, no_loss, None, loss_instead), after


def losses_of(work: StagePass, n: int, by_token: bool) -> torch.Tensor:
    """Return the losses of one segment in nats; zeros on pipeline stages that compute none.

    Args:
        work: this stage's finished passes over a window of segments.
        n: index of the segment, from 0.
        by_token: whether to return the loss of each token, ``[rows, segment_length]``, instead of each row's sum,
            ``[rows]``.
    """
    if not work.losses:
        ids = torch.cat([part.input_ids[:, n] for part in work.micro_batches])
        losses = torch.zeros(ids.shape, device=ids.device)
    else:
        losses = torch.cat([work.losses[n, b] for b in range(len(work.micro_batches))])
    return losses if by_token else losses.sum(dim=1)


def hidden_size(model: HMT) -> int:
    """Return the width of the activations that pipeline stages exchange.

    Args:
        model: this rank's stage.
    """
    return cast(CausalLM, model.backbone).config.get_text_config().hidden_size


@cache
def schedule_of(
    stages: int, segments: int, micro_batches: int, mode: str, backward: bool, summary_group: int
) -> list[list[Action]]:
    """Return the forward and backward passes of each pipeline stage, in order; cached, as every step asks for the same.

    Args:
        stages: number of stages.
        segments: number of segments that the schedule covers.
        micro_batches: number of micro-batches.
        mode: memory mode: ``hmt`` (retrieval), ``rmt`` (the previous segment's memory) or ``backbone`` (none).
        backward: whether backward passes follow, as in training.
        summary_group: number of micro-batches that one summary pass (which computes retrieval queries) covers.
    """
    return pipeline_schedule(stages, segments, micro_batches, mode=mode, backward=backward, summary_group=summary_group)


def split_rows(batch: Rows, parts: int) -> list[Rows]:
    """Split a batch into parts of equally many consecutive rows.

    Args:
        batch: tensors whose first dimension is the rows.
        parts: number of parts, which divides the number of rows.
    """
    names = [field.name for field in fields(batch)]
    chunks = {name: tensor.chunk(parts) for name in names if (tensor := getattr(batch, name)) is not None}
    return [replace(batch, **{name: chunk[b] for name, chunk in chunks.items()}) for b in range(parts)]


def join_rows(parts: list[MemoryState]) -> MemoryState:
    """Join the memory states of consecutive parts of a batch into one state of all rows.

    Args:
        parts: a memory state for each part, in the order of the rows.
    """
    return MemoryState(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(parts[0])))
