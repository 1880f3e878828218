"""The executor on DeepSpeed's ZeRO engines, stages 0 to 3."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from torch import Tensor

from hmt_ds.memory import HMT, MemoryState, SegmentOutput, Window, backward_through_time, read_window
from hmt_ds.parallel.build import parameter_groups
from hmt_ds.parallel.distributed import add_up, world_size
from hmt_ds.parallel.ds_config import computes_in_autocast


@dataclass(frozen=True)
class StepOutput:
    """What one optimizer step reports, for the whole global batch.

    Attributes:
        loss: mean cross-entropy in nats, over all labels of all ranks.
        tokens: labels that were counted.
        fresh_tokens: tokens read, labels or not.
        gradient_norm: before clipping, or None where DeepSpeed does not know it.
        recall_distance: mean number of segments back of what was recalled; None if nothing was.
        skipped: whether the optimizer left the step out (fp16 overflow).
        flags: the sum over ranks of what each rank had to say.
    """

    loss: float
    tokens: int
    fresh_tokens: int
    gradient_norm: float | None
    recall_distance: float | None
    skipped: bool
    flags: int


class ZeroExecutor:
    """Runs windows through an HMT inside a DeepSpeed engine.

    Args:
        model: from :func:`hmt_ds.parallel.build.build_hmt`.
        ds_config: filled.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        memory_lr: learning rate of the memory modules, or None for the optimizer's.
        scheduler: makes a learning rate schedule from an optimizer.
        device: this rank's.
    """

    def __init__(
        self,
        model: HMT,
        *,
        ds_config: dict[str, Any],
        precision: str,
        device: torch.device,
        memory_lr: float | None = None,
        scheduler: Callable[[Any], Any] | None = None,
    ):
        self.settings, self.device, self.dim = model.settings, device, model.backbone.dim
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        self.dtype = torch.float32 if computes_in_autocast(ds_config, precision) else low
        self.engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, memory_lr),
            lr_scheduler=scheduler,
            config=ds_config,
        )
        self.state: MemoryState | None = None

    def empty_state(self, batch: int) -> MemoryState:
        """The state in front of a document."""
        return MemoryState.empty(
            batch,
            self.settings.memory_tokens,
            self.dim,
            self.settings.sensory_tokens,
            dtype=self.dtype,
            device=self.device,
        )

    def train_batch(self, windows: list[Window], flag: int = 0) -> StepOutput:
        """One optimizer step on one or more consecutive windows of this rank's rows.

        The memory is carried from each window to the next, without its graph. Every rank must bring as many windows,
        of as many segments.

        Args:
            windows: on the CPU.
            flag: a number to be summed over the ranks on the way (for example, that this rank was told to stop).
        """
        counts = torch.tensor(
            [sum(int((w.labels >= 0).sum()) for w in windows), sum(int(w.lengths.sum()) for w in windows), flag],
            dtype=torch.float64,
        )
        tokens, fresh, flags = add_up(counts.to(self.device)).long().tolist()
        self.engine.train()
        totals = []
        for number, window in enumerate(windows):
            self.remaining = len(window) * (len(windows) - number)
            sums, self.state = backward_through_time(
                self.engine,
                self.settings,
                window.to(self.device),
                self.state or self.empty_state(window.input_ids.shape[0]),
                # DeepSpeed takes the mean over ranks; what is wanted is the sum over all labels, divided once
                weight=world_size() / max(tokens, 1),
                backward=self.backward,
                loss_scale=self.loss_scale(),
            )
            totals.append(torch.stack([sums.loss.double(), sums.recall_distance.double(), sums.recalls.double()]))
        before, norm = self.engine.skipped_steps, self.plain_gradient_norm()
        self.engine.step()
        loss, distance, recalls = add_up(torch.stack(totals).sum(dim=0)).tolist()
        norm = self.engine.get_global_grad_norm() if norm is None else norm
        return StepOutput(
            loss=loss / max(tokens, 1),
            tokens=tokens,
            fresh_tokens=fresh,
            gradient_norm=None if norm is None else float(norm),
            recall_distance=distance / recalls if recalls else None,
            skipped=self.engine.skipped_steps > before,
            flags=flags,
        )

    def backward(self, scalar: Tensor) -> None:
        """The backward pass of one segment; the last one of a step is where DeepSpeed finishes the gradients."""
        self.remaining -= 1
        self.engine.set_gradient_accumulation_boundary(self.remaining == 0)
        self.engine.backward(scalar, scale_wrt_gas=False)

    def plain_gradient_norm(self) -> float | None:
        """The norm at stage 0, where DeepSpeed clips without telling it; None at the other stages."""
        if self.engine.zero_optimization():
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) / self.loss_scale()

    def loss_scale(self) -> float:
        """What the engine multiplies losses by (1 unless fp16)."""
        if scaler := self.engine.torch_autocast_z0_gradscaler:
            return float(scaler.get_scale())
        return float(getattr(self.engine.optimizer, "loss_scale", 1.0) or 1.0)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Read a window without training; yields each segment's output and the state after it."""
        self.engine.eval()
        state = state or self.empty_state(window.input_ids.shape[0])
        yield from read_window(self.engine, self.settings, window.to(self.device), state, **options)
