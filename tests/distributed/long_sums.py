"""Compare the bf16 gradient of many equal segments with sums in float32 and in bf16. Run by run_ranks.

All documents are equal and one segment long, so all segments have the same gradient.
"""

import gc
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_runs import MEMORY, VOCABULARY, L, plain_model
from torch import Tensor
from zero_cases import Case
from zero_gradients import full_gradients, make_executor, start_weights, whole_error, worst

from hmt_ds.distributed.process_group import end_process, join, rank, world_size
from hmt_ds.memory import IGNORED, MemoryState, Window
from hmt_ds.parallel.zero import ZeroExecutor

Depth = tuple[str, str, int]  # file of ds_configs, way of reduction, segments
LONG: list[Depth] = list(itertools.product(("zero1", "zero2", "zero3"), ("segment", "step"), (64, 1024)))
SHORT: list[Depth] = [depth for depth in LONG if depth[2] == 64 or depth[0] == "zero2"]


def one_row(segments: int) -> Window:
    """A window of one document repeated."""
    ids = torch.randint(VOCABULARY, (L,), generator=torch.Generator().manual_seed(0)).expand(1, segments, L)
    labels = torch.cat([ids[..., 1:], torch.full_like(ids[..., :1], IGNORED)], dim=2)
    everywhere = torch.ones(1, segments, dtype=torch.bool)
    return Window(ids, labels, torch.full((1, segments), L), everywhere)


def sums(weights: dict[str, Tensor], segments: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One process's bf16 gradient of a segment, added up as many times in float32 and in bf16."""
    model = plain_model(dtype=torch.bfloat16)
    model.load_state_dict(weights, strict=False)
    state = MemoryState.empty(1, 2, model.backbone.dim, 3, dtype=torch.bfloat16, device=torch.device("cpu"))
    output = model(one_row(1).segment(0, state.tail, MEMORY), state.memories, state.valid)
    (output.loss.sum() / (segments * (L - 1))).backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    rough = {n: torch.zeros_like(g) for n, g in gradients.items()}
    for _ in range(segments):
        for name, gradient in gradients.items():
            rough[name] += gradient
    return {n: g.float() * segments for n, g in gradients.items()}, {n: g.float() for n, g in rough.items()}


def of_executor(executor: ZeroExecutor, segments: int) -> dict[str, Tensor]:
    """The executor's gradient of one step on this rank's one row."""
    found = {}
    step = executor.engine.step

    def look_and_step() -> None:
        found.update(full_gradients(executor.engine.module))
        step()

    executor.engine.step = look_and_step
    executor.train_batch([one_row(segments)])
    executor.engine.destroy()
    return found


def compare(depth: Depth, device: torch.device) -> dict[str, Any]:
    """Relative errors of the executor and of a sum in bf16 against the sum in float32."""
    config, way, segments = depth
    # settings that do not affect the sums are chosen for speed
    case = Case(config, precision="bf16", reduction=way, recompute="none", summary_batch=64)
    precise, rough = sums(start_weights(case), segments)
    found = of_executor(make_executor(case, device, rows=world_size(), segments=segments), segments)
    return {
        "config": config,
        "reduction": way,
        "segments": segments,
        "executor": whole_error(found, precise),
        "executor_worst": worst(found, precise),
        "bf16": whole_error(rough, precise),
        "bf16_worst": worst(rough, precise),
    }


def be_a_rank(depths: list[Depth], result: Path) -> None:
    """Compare one after the other."""
    device = join(timeout_minutes=2)
    rows = []
    for depth in depths:
        rows.append(compare(depth, device))
        gc.collect()  # DeepSpeed's engines are in reference cycles
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


if __name__ == "__main__":
    be_a_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
