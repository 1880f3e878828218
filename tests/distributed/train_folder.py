"""Training a model's folder for ten steps with the default compute settings. A rank; run_ranks starts it."""

import gc
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from ranks import PROJECT

from hmt_ds.backbones import build_model, read_config
from hmt_ds.conversion.export import Export
from hmt_ds.conversion.folder import write_folder
from hmt_ds.conversion.weights import tensor_weights
from hmt_ds.distributed.process_group import all_gather_object, end_process, join, rank
from hmt_ds.memory import HMT, MemorySettings, Window
from hmt_ds.parallel.build_engine import ExecutorOptions
from hmt_ds.parallel.build_hmt import build_hmt
from hmt_ds.parallel.deepspeed_config.fill import EngineSettings, fill_ds_config, read_ds_config
from hmt_ds.parallel.pipeline.build_stage import build_stage, stage_layers
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.topology import Topology
from hmt_ds.parallel.zero import ZeroExecutor

L, DEPTH, ROWS, STEPS = 16, 2, 4, 10
LEARNING_RATE = {"whole": 5e-3, "lora": 5e-3, "frozen": 2e-2}
WINDOWS = 2  # in each step, so that memories are recalled from the window before
SPOKEN = 16  # ids that occur; a loss that falls has learned at least which ones
MEMORY = MemorySettings(mode="hmt", segment_length=L, recall_dim=32, sensory_tokens=4, cached_memories=3)


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        folder: of the model.
        train: ``whole``, ``lora`` or ``frozen``.
        config: a file of ``ds_configs``.
        stages: of a pipeline; each stage is a rank.
    """

    folder: str
    train: str = "whole"
    config: str = "zero1"
    stages: int = 1


def save_model(config: dict[str, Any], folder: Path) -> None:
    """Write a model with random weights as transformers does."""
    build_model(config, dtype=torch.float32, seed=1).model.save_pretrained(folder)


def save_converted(config: dict[str, Any], folder: Path) -> None:
    """Write a model with memory modules as ``hmt-ds convert`` does."""
    model = HMT(build_model(config, dtype=torch.float32, seed=1), MEMORY)
    weights = tensor_weights({name: weight.detach() for name, weight in model.named_parameters()})  # tied ones once
    write_folder(Export("model", weights, read_config(config), MEMORY, torch.float32), folder)


def windows() -> list[Window]:
    """The windows of every step: the same documents, read from their beginning."""
    ids = torch.randint(SPOKEN, (ROWS, WINDOWS * DEPTH, L + 1), generator=torch.Generator().manual_seed(3))
    starts = torch.arange(WINDOWS * DEPTH).expand(ROWS, -1) == 0
    lengths = torch.full((ROWS, WINDOWS * DEPTH), L)
    parts = [slice(n * DEPTH, (n + 1) * DEPTH) for n in range(WINDOWS)]
    return [Window(ids[:, p, :-1], ids[:, p, 1:], lengths[:, p], starts[:, p]) for p in parts]


@cache
def place_of(stages: int) -> Topology:
    """The process groups of a pipeline, made once."""
    return Topology(stages, timeout_minutes=2)


def make_executor(case: Case, device: torch.device) -> ZeroExecutor | PipelineExecutor:
    """The executor of a case, in bf16, with its weights from the folder."""
    settings = EngineSettings("bf16", ROWS, WINDOWS, 1.0, "AdamW", {"lr": LEARNING_RATE[case.train]})
    ds_config = fill_ds_config(read_ds_config(PROJECT / f"ds_configs/{case.config}.json"), settings)
    options = ExecutorOptions(ds_config, "bf16", device, DEPTH)
    if case.stages == 1:
        chosen: dict[str, Any] = {"ds_config": ds_config, "precision": "bf16", "train": case.train, "device": device}
        return ZeroExecutor(build_hmt(case.folder, MEMORY, **chosen), options)
    place = place_of(case.stages)
    span = stage_layers(read_config(case.folder), case.stages)[place.stage]
    model = build_stage(case.folder, MEMORY, span, dtype=torch.bfloat16, train=case.train, device=device)
    return PipelineExecutor(model, place, options, micro_batches=2)


def train(case: Case, device: torch.device) -> dict[str, Any]:
    """Train; returns the losses of all steps, and whether CUDA graphs were replayed."""
    executor = make_executor(case, device)
    losses = [executor.train_batch(windows()).loss for _ in range(STEPS)]
    graphs = getattr(executor.gradients, "replays", None) is not None
    executor.engine.destroy()
    return {"losses": losses, "graphs": graphs}


def be_a_rank(cases: list[Case], result: Path) -> None:
    """Run cases one after the other in one process group."""
    device = join(timeout_minutes=2)
    rows = []
    for case in cases:
        rows.append(train(case, device))
        all_gather_object(None)
        gc.collect()
        torch._dynamo.reset()
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


if __name__ == "__main__":
    be_a_rank([Case(**values) for values in json.loads(sys.argv[1])], Path(sys.argv[2]))
