"""One optimizer step, the same for every executor: accumulate gradients over segments, reduce them, update weights."""

import math

import torch
from torch import Tensor

from hmt_ds.distributed.deepspeed_internals import loss_scale, set_overflow, skipped_steps
from hmt_ds.distributed.engine import Engine
from hmt_ds.distributed.process_group import all_reduce_sum
from hmt_ds.memory import HMT, MemorySettings, MemoryState, Window
from hmt_ds.parallel.protocols import Executor, Reader, StepOutput


def train_step(executor: Executor, windows: list[Window], flags: tuple[int, ...] = ()) -> StepOutput:
    """Run one optimizer step on one or more windows (chunks of consecutive segments) of this rank's rows.

    Memories are carried from each window to the next, detached (truncated BPTT). All ranks must bring the same number
    of windows, of the same number of segments.

    Args:
        executor: the model in its engine, on this rank.
        windows: consecutive windows of the same rows, on the CPU.
        flags: numbers to sum over the ranks, such as whether this rank received a stop signal.
    """
    counted = [counts_of(window, executor.settings) for window in windows]
    own = [torch.stack(numbers).sum().item() for numbers in zip(*counted, strict=True)]
    # on a pipeline only the last stage counts: its stages share the same rows
    counts = torch.tensor([*(own if executor.reports else (0, 0, 0, 0)), *flags], dtype=torch.float64)
    with executor.phase("wait"):
        total, *numbers = all_reduce_sum(counts.to(executor.device)).tolist()
    labels, fresh, questions, *summed_flags = map(round, numbers)
    total = total or 1.0  # no rank has a label: the loss and all its gradients are zero
    executor.budget.begin_step(len(windows[0]))
    executor.gradients.begin_step(executor.budget)
    executor.engine.train()
    # with ReducePerStep, forward passes use a copy of the model, which engine.train() does not reach
    executor.gradients.model.train()
    # DeepSpeed averages over ranks: with the factor ranks / total, the gradient is that of the weighted mean over all
    # labels of the global batch
    weight = executor.data_ranks / total
    recall_weight = executor.data_ranks * executor.settings.recall_loss / max(questions, 1)
    passes, scale = executor.backward_passes(windows), loss_scale(executor.engine)
    with executor.gradients.accumulate(passes, scale, executor.phase):
        results = [executor.backward_through(window, weight, recall_weight) for window in windows]
        executor.budget.backward_done()
    learning_rate = executor.engine.get_lr()[0]  # read before the step, which advances the schedule
    norm, skipped = update_weights(executor)
    executor.budget.step_done()
    executor.gradients.step_done()
    with executor.phase("wait"):
        sums = all_reduce_sum(torch.stack([totals for totals, _ in results]).sum(dim=0))
    loss, distance, recalls, recall_loss, reset_rows = sums.tolist()
    return StepOutput(
        loss=loss / total,
        labels=labels,
        fresh_tokens=fresh,
        learning_rate=learning_rate,
        gradient_norm=norm,
        recall_distance=distance / recalls if recalls else None,
        recall_loss=recall_loss / questions if questions and executor.settings.recall_loss else None,
        skipped=skipped,
        # an fp16 overflow with a finite loss is the loss scaler's normal work, not a bad step
        bad=skipped and not (executor.precision == "fp16" and math.isfinite(loss)),
        reset_rows=int(reset_rows),
        finite=torch.cat([finite for _, finite in results], dim=1),
        flags=tuple(summed_flags),
    )


def counts_of(window: Window, settings: MemorySettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Count the labels, tokens and retrieval targets in a window (the next segments of every row).

    Args:
        window: the next segments of every row.
        settings: settings of the memory.

    Returns:
        0-dimensional tensors: the summed weights of labels, and the number of labels, of tokens that no earlier segment
        has, and of segments for which the data names a memory to retrieve.
    """
    asked = torch.zeros(()) if window.targets is None else (window.targets > 0).sum()
    labels = (window.labels >= 0).sum()
    total = labels if window.weights is None else window.weights.double().sum()
    gaps = window.turns.sum() * (settings.sink_tokens + settings.prompt_tokens())
    return total, labels, window.lengths.sum() - gaps, asked


def update_weights(executor: Executor) -> tuple[float | None, bool]:
    """Run DeepSpeed's ``engine.step()``: clip gradients, update the weights, advance the learning rate schedule.

    Args:
        executor: the model in its engine, which has the gradients of the step.

    Returns:
        The gradient norm before clipping (None if DeepSpeed does not compute it), and whether the step was skipped
        because gradients were not finite.
    """
    engine = executor.engine
    before, norm = skipped_steps(engine), stage_0_gradient_norm(engine)
    if norm is not None:  # stage 0 has no overflow check of its own
        set_overflow(engine, not math.isfinite(norm))
    with executor.phase("step"):
        engine.step()
    if norm is None:
        found = engine.get_global_grad_norm()
        norm = None if found is None else float(found)
    else:  # stage 0: the check is over
        set_overflow(engine, False)
    return norm, skipped_steps(engine) > before


def stage_0_gradient_norm(engine: Engine[HMT]) -> float | None:
    """Return the gradient norm at ZeRO stage 0, where DeepSpeed clips without reporting it; None at other stages.

    Args:
        engine: DeepSpeed's engine.
    """
    if engine.zero_optimization_stage() > 0:
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) / loss_scale(engine)


def empty_state(reader: Reader, rows: int, cached: int = 0) -> MemoryState:
    """Return the memory state at the beginning of documents: no tokens read, no valid memory.

    Args:
        reader: the model in its engine, which gives width, dtype and device.
        rows: number of rows (sequences) of the batch.
        cached: number of invalid memories to begin with.
    """
    settings = reader.settings
    return MemoryState.empty(
        rows,
        settings.memory_tokens,
        reader.embedding_width,
        settings.sensory_tokens,
        dtype=reader.dtype,
        device=reader.device,
        cached=cached,
    )


def carry(executor: Executor, state: MemoryState) -> Tensor:
    """Store the memory state for the next segments, detached from the graph; reset rows whose memories are not finite.

    Args:
        executor: the model in its engine, whose ``state`` is set.
        state: memory state after the segments of this backward pass.

    Returns:
        The number of reset rows (0-dimensional, float64).
    """
    executor.state, broken = state.without_broken()
    return broken.sum().double()
