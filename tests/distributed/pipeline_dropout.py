"""Compare gradients of recomputed passes with those of kept graphs, on stages with dropout. Run by run_ranks."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from pipeline_gradients import topology_of
from tiny_runs import MEMORY, VOCABULARY, windows
from torch import Tensor
from zero_gradients import CLIPPING, OPTIMIZER, PROJECT, full_gradients, whole_error

from hmt_ds.backbones import read_config
from hmt_ds.distributed.process_group import end_process, join, rank, world_size
from hmt_ds.parallel.build_engine import ExecutorOptions
from hmt_ds.parallel.compute_choice import ComputeSettings
from hmt_ds.parallel.deepspeed_config.fill import EngineSettings, fill_ds_config, read_ds_config
from hmt_ds.parallel.pipeline.build_stage import build_stage, stage_layers
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.stage import StagePass

SEGMENTS, PARTS, ROWS = 2, 2, 4
PASSES = SEGMENTS * (PARTS + 1)  # forward passes: segments, and summaries of both micro-batches in one
OPT = {
    "model_type": "opt",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "init_std": 0.06,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def gradients_of(backbone: dict[str, Any], kept_graphs: int, seed: int) -> tuple[dict[str, Tensor], int]:
    """This stage's gradients of one step that keeps some graphs, and how many passes were recomputed."""
    topology = topology_of(world_size())
    settings = EngineSettings("fp32", ROWS, 1, CLIPPING, "AdamW", OPTIMIZER)
    span = stage_layers(read_config(backbone), topology.stages)[topology.stage]
    ds_config = fill_ds_config(read_ds_config(PROJECT / "ds_configs" / "zero1.json"), settings)
    stage = build_stage(backbone, MEMORY, span, dtype=torch.float32, seed=1)
    options = ExecutorOptions(ds_config, "fp32", torch.device("cpu"), SEGMENTS, ComputeSettings(kernels="plain"))
    executor = PipelineExecutor(stage, topology, options, micro_batches=PARTS)
    executor.budget.segment_bytes = executor.budget.summary_bytes = 1
    executor.budget.free_bytes = kept_graphs
    found: dict[str, Tensor] = {}
    step, recompute, recomputed = executor.engine.step, StagePass.recompute, []

    def look_and_step() -> None:
        found.update(full_gradients(executor.engine.module))
        step()

    def count(*arguments: Any) -> Any:
        recomputed.append(arguments)
        return recompute(*arguments)

    executor.engine.step = look_and_step
    torch.manual_seed(seed + rank())
    with patch.object(StagePass, "recompute", count):
        executor.train_batch(windows(0, 1, SEGMENTS, ROWS)[:1])
    executor.engine.destroy()
    return found, len(recomputed)


def be_a_rank(backbones: list[dict[str, Any]], result: Path) -> None:
    """Write a row for each backbone with the results of all stages."""
    join(timeout_minutes=2)
    rows = []
    for backbone in backbones:
        kept, nothing = gradients_of(backbone, PASSES, 3)
        found, count = gradients_of(backbone, 0, 3)
        other, _ = gradients_of(backbone, PASSES, 7)
        own = {"off": whole_error(found, kept), "other": whole_error(other, kept), "recomputed": [nothing, count]}
        every: list[Any] = [None] * world_size()
        torch.distributed.all_gather_object(every, own)
        rows.append(every)
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


if __name__ == "__main__":
    be_a_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
