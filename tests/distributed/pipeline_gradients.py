"""Compare pipeline stages with one process: gradients before clipping, weights, losses and norms of some steps.

run_ranks starts this file on every rank. Run by hand, it prints the whole grid:
python tests/distributed/pipeline_gradients.py
"""

import gc
import json
import os
import sys
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ranks import PROJECT, run_ranks
from tiny_runs import ADAPTED, BACKBONE, MEMORY, get_weights, plain_model, set_weights, windows
from torch import Tensor
from zero_gradients import CLIPPING, OPTIMIZER, full_gradients, mean_losses, worst

from hmt_ds.backbones import read_config
from hmt_ds.distributed.process_group import broadcast_object, end_process, join, rank, world_size
from hmt_ds.memory import MemoryState
from hmt_ds.parallel.build_engine import ExecutorOptions
from hmt_ds.parallel.compute_choice import ComputeSettings
from hmt_ds.parallel.deepspeed_config.fill import EngineSettings, fill_ds_config, read_ds_config
from hmt_ds.parallel.pipeline.build_stage import build_stage, stage_layers
from hmt_ds.parallel.pipeline.executor import PipelineExecutor
from hmt_ds.parallel.pipeline.schedule import summary_group_size
from hmt_ds.parallel.pipeline.stage import StagePass
from hmt_ds.parallel.pipeline.topology import Topology

LAYERS, STEPS = 4, 2
LIMIT = 3  # inputs that stay on the device, in cases that offload the others


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        segments: of a window; each step has one window for each of ``accumulation``.
        stage: of ZeRO.
        precision: ``fp32`` or ``bf16``.
        spill: offload older inputs to the host.
        kept_graphs: number of forward passes that keep their graphs.
        recalled: number of older memories, with the adapted interface.
        groups: in the one process, the parts of the rows whose memories the recall's loss counts.
        loss: see ``windows`` in tiny_runs.py.
    """

    stages: int
    pipelines: int
    segments: int
    micro_batches: int
    mode: str = "hmt"
    train: str = "whole"
    stage: int = 1
    accumulation: int = 1
    precision: str = "fp32"
    spill: bool = False
    kept_graphs: int = 0
    interface: str = "paper"
    recalled: int = 1
    recall_loss: float = 0.0
    groups: int = 1
    loss: str = "all"

    @property
    def rows(self) -> int:
        """Rows of the global batch."""
        return 4 * self.pipelines

    @property
    def recomputed(self) -> int:
        """Forward passes that each stage recomputes per window. (Without memory it keeps all graphs or none.)"""
        summary_group = summary_group_size(self.stages, self.segments, self.micro_batches, self.memory.summary_share)
        summaries = self.micro_batches // summary_group if self.memory.summarises else 0
        passes = self.segments * (self.micro_batches + summaries)
        return passes - (passes if self.mode == "backbone" and self.kept_graphs else min(passes, self.kept_graphs))

    @property
    def memory(self) -> Any:
        """Memory settings; summaries are short enough to be computed for two micro-batches together."""
        if self.interface == "paper":
            return replace(MEMORY, mode=self.mode, summary_fraction=0.25)
        return replace(ADAPTED, mode=self.mode, recalled_memories=self.recalled, recall_loss=self.recall_loss)


# mode, number of older memories, weight of the recall's loss
ADAPTED_KINDS = [("hmt", 2, 0.3), ("hmt", 1, 0.0), ("rmt", 1, 0.0), ("backbone", 1, 0.0)]
LAYOUTS = [(2, 1), (3, 1), (4, 1), (2, 2)]
GRID = [
    Case(stages, pipelines, segments, parts, mode, train)
    for (stages, pipelines), segments, parts, mode, train in product(
        LAYOUTS, (1, 2, 5), (1, 2, 4), ("hmt", "rmt"), ("whole", "lora")
    )
]
ADAPTED_GRID = [
    Case(stages, 1, segments, parts, mode, train, interface="adapted", recalled=recalled, recall_loss=weight)
    for stages, segments, parts, (mode, recalled, weight), train in product(
        (2, 3), (2, 5), (1, 2, 4), ADAPTED_KINDS, ("whole", "lora", "frozen")
    )
]
OTHERS = [
    Case(2, 2, 2, 2, accumulation=2),
    Case(2, 1, 3, 2, mode="backbone"),
    Case(3, 1, 3, 2, mode="backbone"),
    Case(4, 1, 2, 4, mode="backbone", spill=True),
    Case(3, 1, 2, 4, mode="backbone", kept_graphs=3),
    Case(3, 1, 5, 4, spill=True),
    Case(3, 1, 2, 2, kept_graphs=5),
    Case(2, 1, 2, 2, mode="rmt", kept_graphs=9),
    Case(2, 2, 5, 2, precision="bf16"),
]
ADAPTED_OTHERS = [
    Case(2, 2, 2, 2, accumulation=2, interface="adapted", recalled=2, recall_loss=0.3),
    Case(3, 1, 5, 4, spill=True, kept_graphs=7, interface="adapted", recalled=2, recall_loss=0.3),
]
LARGE = [Case(3, 2, 2, 2), Case(4, 2, 2, 4)]


@cache
def in_one_process(case: Case) -> dict[str, Any]:
    """Train all rows in one process in float64, with torch alone and one graph per window."""
    model = start_model(case).double()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **OPTIMIZER)
    cached = case.memory.kept_memories
    state = MemoryState.empty(case.rows, 2, 32, 3, dtype=torch.float64, device=torch.device("cpu"), cached=cached)
    run: dict[str, Any] = {"losses": [], "recall_losses": [], "norms": [], "gradients": []}
    for group in steps(case, 0, 1):
        loss, recall_loss, state = mean_losses(model, group, state, case.groups)
        optimizer.zero_grad()
        (loss + case.recall_loss * recall_loss).backward()
        none = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
        run["gradients"].append(
            {n: z if (g := dict(model.named_parameters())[n].grad) is None else g.clone() for n, z in none.items()}
        )
        run["losses"].append(float(loss.detach()))
        run["recall_losses"].append(float(recall_loss.detach()))
        run["norms"].append(float(torch.nn.utils.clip_grad_norm_(trained, CLIPPING)))
        optimizer.step()
    return run | {"weights": get_weights(model), "memories": state.memories.detach()}


def start_model(case: Case) -> Any:
    """The common initial model; for bf16, with weights that bf16 can represent."""
    model = plain_model(case.train, layers=LAYERS, memory=case.memory)
    return model if case.precision == "fp32" else model.bfloat16().float()


def steps(case: Case, number: int, pipelines: int) -> list[list[Any]]:
    """The windows of each optimizer step."""
    every = windows(number, pipelines, case.segments, case.rows, case.loss)
    groups = [every[i : i + case.accumulation] for i in range(0, len(every), case.accumulation)]
    return [group for group in groups if len(group) == case.accumulation][:STEPS]


@cache
def topology_of(stages: int) -> Topology:
    """The topology of a layout, whose process groups are created once."""
    return Topology(stages, timeout_minutes=2)


def on_all_ranks(case: Case, device: torch.device) -> dict[str, Any]:
    """Train with the executor; return the results of this rank's stage."""
    executor = make_executor(case, device)
    step, recompute = executor.engine.step, StagePass.recompute
    run: dict[str, Any] = {"losses": [], "recall_losses": [], "norms": [], "gradients": [], "recomputed": 0}

    def look_and_step() -> None:
        found = full_gradients(executor.engine.module)
        run["gradients"].append({name: gradient for name, gradient in found.items() if name != "stand_in"})
        step()

    def count(*arguments: Any) -> Any:
        run["recomputed"] += 1
        return recompute(*arguments)

    executor.engine.step = look_and_step
    with patch.object(StagePass, "recompute", count):
        for group in steps(case, executor.data_rank, executor.data_ranks):
            output = executor.train_batch(group)
            run["losses"].append(output.loss)
            run["recall_losses"].append(output.recall_loss or 0.0)
            run["norms"].append(output.gradient_norm or 0.0)
    assert executor.state is not None
    weights = {n: w for n, w in get_weights(executor.engine.module).items() if n != "stand_in"}
    run |= {"weights": weights, "memories": executor.state.memories.detach().cpu()}
    executor.engine.destroy()
    return run


def make_executor(case: Case, device: torch.device) -> PipelineExecutor:
    """The executor of a case, with the weights of the single process."""
    config = read_ds_config(PROJECT / "ds_configs" / f"zero{case.stage}.json")
    settings = EngineSettings(case.precision, case.rows // case.pipelines, 1, CLIPPING, "AdamW", OPTIMIZER)
    config = fill_ds_config(config, settings)
    topology = topology_of(case.stages)
    source = BACKBONE | {"num_hidden_layers": LAYERS}
    span = stage_layers(read_config(source), case.stages)[topology.stage]
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    model = build_stage(source, case.memory, span, dtype=dtype, train=case.train, device=device)
    whole = get_weights(start_model(case))
    set_weights(model, {name: whole.get(name, weight) for name, weight in model.named_parameters()})
    model.eval()
    options = ExecutorOptions(config, case.precision, device, case.segments, ComputeSettings(kernels="plain"))
    live_inputs = LIMIT if case.spill else None
    executor = PipelineExecutor(model, topology, options, micro_batches=case.micro_batches, live_inputs=live_inputs)
    executor.budget.segment_bytes = executor.budget.summary_bytes = 1
    executor.budget.free_bytes = case.kept_graphs
    return executor


def gathered(case: Case, run: dict[str, Any]) -> dict[str, Any]:
    """The gradients of all stages of the first pipeline; tied weights are on two stages."""
    every: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(every, run)
    first = every[:: case.pipelines]
    gradients = [{k: v for stage in first for k, v in stage["gradients"][n].items()} for n in range(len(run["losses"]))]
    return {
        "gradients": gradients,
        "weights": {k: v for stage in first for k, v in stage["weights"].items()},
        "memories": torch.cat([other["memories"] for other in every[-case.pipelines :]]),
        "losses": run["losses"],
        "recall_losses": run["recall_losses"],
        "norms": run["norms"],
        "recomputed": [stage["recomputed"] for stage in first],
        "apart": [
            k for k in first[0]["weights"].keys() & first[-1]["weights"].keys()
            if not torch.equal(first[0]["weights"][k], first[-1]["weights"][k])
        ],
    }  # fmt: skip


def compare(case: Case, got: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Compute a row of the table."""
    pairs = list(zip(got["gradients"], expected["gradients"], strict=True))
    gradient, name = max(worst(g, e) for g, e in pairs)
    whole: list[Tensor] = [torch.cat([x[n].double().flatten() for n in pairs[0][1]]) for x in pairs[0]]
    return {
        "case": astuple(case),
        "gradient": gradient,
        "gradient_of": name,
        "whole_gradient": float((whole[0] - whole[1]).norm() / whole[1].norm()),
        "weights": worst({n: w.float() for n, w in got["weights"].items()}, expected["weights"])[0],
        "loss": max(abs(g / e - 1) for g, e in zip(got["losses"], expected["losses"], strict=True)),
        "recall_loss": max(abs(g - e) for g, e in zip(got["recall_losses"], expected["recall_losses"], strict=True)),
        "recall_losses": expected["recall_losses"],
        "norm": max(abs(g / e - 1) for g, e in zip(got["norms"], expected["norms"], strict=True)),
        "memories": float((got["memories"] - expected["memories"]).abs().max()) if got["memories"].numel() else 0.0,
        "norms": expected["norms"],
        "apart": got["apart"],
        "recomputed": got["recomputed"],
        "recomputed_expected": [case.recomputed * case.accumulation * STEPS] * case.stages,
    }


def be_a_rank(cases: list[Case], result: Path) -> None:
    """Run cases one after the other in one process group."""
    device = join(timeout_minutes=2)
    rows = []
    for case in cases:
        got = gathered(case, on_all_ranks(case, device))
        if rank() == 0:
            groups = case.pipelines * case.micro_batches if case.recall_loss else 1
            plain = replace(case, stages=1, micro_batches=1, stage=1, spill=False, kept_graphs=0, groups=groups)
            rows.append(compare(case, got, in_one_process(plain)))
        broadcast_object(None)
        gc.collect()
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


def run_cases(cases: list[Case], timeout: float = 300, one_gpu: bool = False) -> list[dict[str, Any]]:
    """Run some cases that need the same number of ranks."""
    (ranks,) = {case.stages * case.pipelines for case in cases}
    tasks = [astuple(case) for case in cases]
    return run_ranks("pipeline_gradients.py", tasks, ranks=ranks, timeout=timeout, one_gpu=one_gpu)


def print_table() -> None:
    """Print the largest relative errors of two steps for every case."""
    figures = ("gradient", "weights", "loss", "norm", "whole_gradient")
    print(f"{' '.join(field.name for field in fields(Case)):80}", *figures, "worst in")
    cases = GRID + OTHERS + LARGE + ADAPTED_GRID + ADAPTED_OTHERS
    for ranks in sorted({case.stages * case.pipelines for case in cases}):
        for row in run_cases([c for c in cases if c.stages * c.pipelines == ranks], timeout=3600):
            errors = [f"{row[key]:.1e}" for key in figures]
            print(f"{' '.join(map(str, row['case'])):80}", *errors, row["gradient_of"], row["apart"] or "", flush=True)


if __name__ == "__main__":
    if "RANK" in os.environ:
        be_a_rank([Case(*values) for values in json.loads(sys.argv[1])], Path(sys.argv[2]))
    else:
        print_table()
