"""The state of a run that is equal on all ranks: the content of a checkpoint's file ``progress.json``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from hmt_ds.checkpoint.files import RUN_STATE
from hmt_ds.checkpoint.fragments import OptimizerScalars, optimizer_scalars
from hmt_ds.distributed.deepspeed_internals import counters, loss_scaler_state
from hmt_ds.distributed.process_group import world_size
from hmt_ds.parallel.protocols import Executor


@dataclass(frozen=True)
class RunPosition:
    """How far a run has come: optimizer steps, tokens, and position in the data.

    Attributes:
        step: number of optimizer steps taken.
        tokens: number of tokens that all ranks have read, without those repeated from the previous segment.
        position: where the data loader is in the documents, as JSON; None before the first step.
    """

    step: int = 0
    tokens: int = 0
    position: dict[str, Any] | None = None


class EngineState(TypedDict):
    """State of a DeepSpeed engine in a checkpoint's ``progress.json``.

    Attributes:
        optimizer: step counters and settings of parameter groups.
        schedule: ``state_dict`` of the learning rate schedule; None without one.
        loss_scaler: the fp16 loss scale and its counters by name; empty for other precisions.
        counters: DeepSpeed's step counters by attribute name.
    """

    optimizer: OptimizerScalars
    schedule: dict[str, object] | None
    loss_scaler: dict[str, float]
    counters: dict[str, int]


class RunState(EngineState):
    """The content of a checkpoint's ``progress.json``: position and identity of the run, layout of the ranks, engine
    state.

    Attributes:
        step: number of optimizer steps taken.
        tokens: number of tokens that all ranks have read, without those repeated from the previous segment.
        position: where the data loader is in the documents; None before the first step.
        world_size: number of ranks.
        stages: number of pipeline stages; 1 without a pipeline.
        rows_per_rank: rows of the batch on each rank, or each pipeline; 0 if no memories were saved.
        zero_stage: ZeRO stage, 0 to 3.
        identity: settings that a resumed run must have in common with the checkpoint, by recipe key.
    """

    step: int
    tokens: int
    position: dict[str, Any] | None
    world_size: int
    stages: int
    rows_per_rank: int
    zero_stage: int
    identity: dict[str, object]


def run_state(executor: Executor, position: RunPosition, identity: dict[str, object]) -> RunState:
    """Collect the content of ``progress.json`` for a checkpoint.

    Args:
        executor: the model in its engine, which is saved.
        position: how far the run has come: its step, and its position in the data.
        identity: settings that a resumed run must have in common with the checkpoint, by recipe key.
    """
    engine = executor.engine
    return {
        "step": position.step,
        "tokens": position.tokens,
        "position": position.position,
        "world_size": world_size(),
        "stages": executor.stages,
        "rows_per_rank": 0 if executor.state is None else len(executor.state.valid),
        "zero_stage": engine.zero_optimization_stage(),
        "optimizer": optimizer_scalars(engine),
        "schedule": engine.lr_scheduler.state_dict() if engine.lr_scheduler else None,
        "loss_scaler": loss_scaler_state(engine),
        "counters": counters(engine),
        "identity": identity,
    }


def read_run_state(checkpoint: Path) -> RunState:
    """Read a checkpoint's ``progress.json``: how far the run had come, its layout and the state of its engine.

    Args:
        checkpoint: folder of the checkpoint, already checked for damage.
    """
    return json.loads((checkpoint / RUN_STATE).read_text(encoding="utf-8"))
