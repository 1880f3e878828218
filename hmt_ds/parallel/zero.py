"""The executor on DeepSpeed's ZeRO engines, stages 0 to 3."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any, cast

import deepspeed
import torch

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import compile_layers
from hmt_ds.distributed.deepspeed_internals import (
    full_numel,
    join_offloaded_parts,
    loss_scale,
    set_overflow,
    skip_steps_on_overflow,
    skipped_steps,
)
from hmt_ds.distributed.engine import Engine
from hmt_ds.distributed.process_group import add_up, rank, world_size
from hmt_ds.memory import HMT, MemoryState, SegmentOutput, Window, backward_through_time, read_window
from hmt_ds.memory.bptt import Phase
from hmt_ds.memory.loss import cross_entropy
from hmt_ds.parallel.activation_budget import ActivationBudget
from hmt_ds.parallel.build_hmt import parameter_groups
from hmt_ds.parallel.compute_choice import BY_DEFAULT, ComputeSettings, arrange, resolve
from hmt_ds.parallel.deepspeed_config.fill import computes_in_autocast, stage_of, with_bucket
from hmt_ds.parallel.gradients import ReducePerSegment, ReducePerStep


@dataclass(frozen=True)
class StepOutput:
    """What one optimizer step reports, for the whole global batch.

    Attributes:
        loss: mean cross-entropy in nats, over all labels of all ranks.
        tokens: labels that were counted.
        fresh_tokens: tokens read, labels or not.
        learning_rate: of this step, for the first group of weights.
        gradient_norm: before clipping, or None where DeepSpeed does not know it.
        recall_distance: mean number of segments back of what was recalled; None if nothing was.
        skipped: whether the optimizer left the step out, for the gradients are not finite.
        bad: whether that is more than a loss scale that was too large (fp16).
        anew: how many rows lost their memory, which was not finite.
        finite: ``[rows, segments]`` bool, of this rank's rows and of all its windows, whether the loss is finite.
        flags: the sums over ranks of what each rank had to say.
    """

    loss: float
    tokens: int
    fresh_tokens: int
    learning_rate: float
    gradient_norm: float | None
    recall_distance: float | None
    skipped: bool
    bad: bool
    anew: int
    finite: torch.Tensor
    flags: tuple[int, ...]


class ZeroExecutor:
    """Runs windows through an HMT inside a DeepSpeed engine.

    Args:
        model: from :func:`hmt_ds.parallel.build_hmt.build_hmt`.
        ds_config: filled.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        memory_lr: learning rate of the memory modules, or None for the optimizer's.
        scheduler: makes a learning rate schedule from an optimizer.
        device: this rank's.
        depth: segments of a window.
        compute: what is traded for what.
        grid: DeepSpeed's, where the ranks are not all data-parallel.
    """

    stages = 1  # of a pipeline
    reports = True  # whether this rank has the losses

    def __init__(
        self,
        model: HMT,
        *,
        ds_config: dict[str, Any],
        precision: str,
        device: torch.device,
        depth: int,
        compute: ComputeSettings = BY_DEFAULT,
        memory_lr: float | None = None,
        scheduler: Callable[[Any], Any] | None = None,
        grid: Any = None,
    ):
        self.settings, self.device, self.dim = model.settings, device, model.backbone.dim
        self.precision = precision
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        autocast = computes_in_autocast(ds_config, precision)
        self.dtype = torch.float32 if autocast else low
        self.compute = resolve(compute, model, ds_config, device)
        self.room = ActivationBudget(self.compute, self.settings, depth, device)
        arrange(model, self.compute, stage_of(ds_config))
        once = self.compute.reduction == "step"
        trained = sum(full_numel(weight) for weight in model.parameters() if weight.requires_grad)
        # made before DeepSpeed puts hooks into the model
        in_autocast = torch.autocast(device.type, low, enabled=autocast, cache_enabled=False)
        graphs = self.compute.cuda_graphs == "always"
        self.gradients = ReducePerStep(model, in_autocast, graphs) if once else ReducePerSegment(model)
        if self.compute.kernels == "compile":
            compile_layers(cast(CausalLM, self.gradients.model.backbone))
        if self.compute.kernels != "plain":
            self.gradients.model.cross_entropy = torch.compile(cross_entropy)
        with redirect_stdout(io.StringIO()):  # DeepSpeed prints how much memory it takes
            engine, *_ = deepspeed.initialize(
                model=model,
                model_parameters=parameter_groups(model, memory_lr),
                lr_scheduler=scheduler,
                mpu=grid,
                # DeepSpeed counts backward passes; for many, any number above 1 will do
                config=with_bucket(ds_config, trained, once=once) | {"gradient_accumulation_steps": 1 if once else 2},
            )
        self.engine: Engine[HMT] = engine
        skip_steps_on_overflow(self.engine)
        join_offloaded_parts(self.engine)
        self.gradients.attach(self.engine)
        self.state: MemoryState | None = None
        self.phase: Phase = nullcontext

    @property
    def data_ranks(self) -> int:
        """How many ranks, or pipelines, share the rows of the global batch."""
        return world_size() // self.stages

    @property
    def data_rank(self) -> int:
        """Which of them this is."""
        return rank() % self.data_ranks

    def empty_state(self, batch: int, cached: int = 0) -> MemoryState:
        """The state in front of a document, with so many empty places for memories."""
        return MemoryState.empty(
            batch,
            self.settings.memory_tokens,
            self.dim,
            self.settings.sensory_tokens,
            dtype=self.dtype,
            device=self.device,
            cached=cached,
        )

    def train_batch(self, windows: list[Window], flags: tuple[int, ...] = ()) -> StepOutput:
        """One optimizer step on one or more consecutive windows of this rank's rows.

        The memory is carried from each window to the next, without its graph. Every rank must bring as many windows,
        of as many segments.

        Args:
            windows: on the CPU.
            flags: numbers to be summed over the ranks on the way (for example, that this rank was told to stop).
        """
        read = [sum(int((w.labels >= 0).sum()) for w in windows), sum(int(w.lengths.sum()) for w in windows)]
        counts = torch.tensor([*(read if self.reports else (0, 0)), *flags], dtype=torch.float64)
        with self.phase("wait"):
            tokens, fresh, *told = add_up(counts.to(self.device)).long().tolist()
        self.engine.train()
        self.gradients.model.train()
        # DeepSpeed takes the mean over ranks; what is wanted is the sum over all labels, divided once
        weight = self.data_ranks / max(tokens, 1)
        with self.gradients.of_a_step(self.backward_passes(windows), loss_scale(self.engine), self.phase):
            totals, finite = zip(*(self.backward_through(window, weight) for window in windows), strict=True)
            self.room.windows_read()
        rate = self.engine.get_lr()[0]  # before the step, which moves the schedule on
        norm, skipped = self.take_step()
        self.room.step_done()
        self.gradients.step_done()
        with self.phase("wait"):
            loss, distance, recalls, anew = add_up(torch.stack(totals).sum(dim=0)).tolist()
        return StepOutput(
            loss=loss / max(tokens, 1),
            tokens=tokens,
            fresh_tokens=fresh,
            learning_rate=rate,
            gradient_norm=norm,
            recall_distance=distance / recalls if recalls else None,
            skipped=skipped,
            bad=skipped and not (self.precision == "fp16" and math.isfinite(loss)),
            anew=int(anew),
            finite=torch.cat(finite, dim=1),
            flags=tuple(told),
        )

    def take_step(self) -> tuple[float | None, bool]:
        """The optimizer's step; returns the gradients' norm if it is known, and whether the step was left out."""
        before, norm = skipped_steps(self.engine), self.plain_gradient_norm()
        if norm is not None:
            set_overflow(self.engine, not math.isfinite(norm))
        with self.phase("step"):
            self.engine.step()
        if norm is None:
            found = self.engine.get_global_grad_norm()
            norm = None if found is None else float(found)
        else:
            set_overflow(self.engine, False)
        return norm, skipped_steps(self.engine) > before

    def backward_through(self, window: Window, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a window's gradients, and carry the memory on.

        Args:
            weight: factor of the loss.

        Returns:
            ``[4]`` float64: the loss, the recall distances, the number of recalls, and the rows that start anew, summed
            over this rank's rows; and ``[rows, segments]`` bool, where the loss is finite.
        """
        sums, state = backward_through_time(
            self.room.watch(self.gradients.read),
            self.settings,
            window if self.compute.spill else window.to(self.device),
            self.state or self.empty_state(len(window.input_ids), self.settings.kept_memories),
            weight=weight,
            backward=self.gradients.backward,
            plan=self.room.plan,
            loss_scale=loss_scale(self.engine),
            phase=self.phase,
        )
        totals = [sums.loss, sums.recall_distance, sums.recalls, self.carry(state)]
        return torch.stack([total.double() for total in totals]), sums.finite

    def carry(self, state: MemoryState) -> torch.Tensor:
        """Go on with a state in the next window; returns how many rows start anew (0-dimensional, float64)."""
        self.state, broken = state.without_broken()
        return broken.sum().double()

    def backward_passes(self, windows: list[Window]) -> int:
        """How many a step takes."""
        summarises = self.settings.mode == "hmt"
        return sum(self.room.plan.backward_passes(len(w), len(w) if summarises else 0) for w in windows)

    def plain_gradient_norm(self) -> float | None:
        """The norm at stage 0, where DeepSpeed clips without telling it; None at the other stages."""
        if self.engine.zero_optimization_stage() > 0:
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) / loss_scale(self.engine)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Read a window without training; yields each segment's output and the state after it."""
        self.engine.eval()
        state = state or self.empty_state(window.input_ids.shape[0])
        yield from read_window(self.engine, self.settings, window.to(self.device), state, **options)
