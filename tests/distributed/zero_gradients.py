"""Compare gradients and weights of the ZeRO executor on two ranks with one autograd graph in one process.

    python tests/distributed/zero_gradients.py

prints the table over stages, trained weights, precision and accumulation. run_ranks starts this file on every rank.
"""

import gc
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad
from ranks import PROJECT, run_ranks
from tiny_runs import BACKBONE, DEPTH, ROWS, get_weights, plain_model, set_weights, windows
from torch import Tensor
from zero_cases import ACCUMULATION, ADAPTED_GRID, BF16, COUNTED, FLOAT64, GRID, POLICIES, Case

from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.distributed.process_group import end_process, join, rank, world_size
from hmt_ds.memory import HMT, MemoryState, Window, read_window
from hmt_ds.parallel import build_engine
from hmt_ds.parallel.build_engine import ExecutorOptions
from hmt_ds.parallel.build_hmt import build_hmt
from hmt_ds.parallel.deepspeed_config.fill import EngineSettings, fill_ds_config, read_ds_config
from hmt_ds.parallel.pipeline.runner import join_rows, split_rows
from hmt_ds.parallel.zero import ZeroExecutor

# eps is well above rounding: AdamW's first step is lr * g / (|g| + eps), which for tiny g would be the sign of rounding
OPTIMIZER = {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-5, "weight_decay": 0.1}
OPTIMIZERS = {
    "AdamW": ("AdamW", OPTIMIZER),
    "SGD": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
}
CLIPPING = 1.0


@dataclass
class Run:
    """Results of a training run: loss, norm and all gradients before clipping for each step; weights at the end.

    For the executor also: calls of a layer in a step, and the modules that were not in training mode.
    """

    losses: list[float] = field(default_factory=list)
    recall_losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    asleep: list[str] = field(default_factory=list)


def start_weights(case: Case) -> dict[str, Tensor]:
    """The common initial weights; for bf16, values that bf16 can represent."""
    weights = get_weights(plain_model(case.train, memory=case.memory))
    return weights if case.precision != "bf16" else {n: w.bfloat16().float() for n, w in weights.items()}


def steps(case: Case, number: int, ranks: int) -> list[list[Window]]:
    """The windows of each optimizer step. Accumulation splits a step's segments, so that it reads the same tokens."""
    every = windows(number, ranks, DEPTH // case.accumulation, loss=case.loss)
    return [every[i : i + case.accumulation] for i in range(0, len(every), case.accumulation)]


@cache
def in_one_process(case: Case, groups: int) -> Run:
    """Train all rows in one process with torch alone, one graph per window, in float64: errors are the executor's.

    Args:
        groups: into which the rows are split: the recall's loss counts the memories of a group's rows.
    """
    model, run = plain_model(case.train, memory=case.memory), Run()
    set_weights(model, start_weights(case))
    model.double()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **OPTIMIZER)
    state = MemoryState.empty(ROWS, 2, model.backbone.dim, 3, dtype=torch.float64, device=torch.device("cpu"))
    for group in steps(case, 0, 1):
        loss, recall_loss, state = mean_losses(model, group, state, groups)
        optimizer.zero_grad()
        (loss + case.recall_loss * recall_loss).backward()
        run.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        run.losses.append(float(loss.detach()))
        run.recall_losses.append(float(recall_loss.detach()))
        run.norms.append(float(torch.nn.utils.clip_grad_norm_(trained, CLIPPING)))
        optimizer.step()
    run.weights = get_weights(model)
    return run


def mean_losses(
    model: HMT, windows: Iterable[Window], state: MemoryState, groups: int
) -> tuple[Tensor, Tensor, MemoryState]:
    """The loss per label and the recall's loss per question, each in one graph per window, and the state behind.

    The labels' weights are applied to the losses of tokens.
    """
    loss, recall_loss, labels, questions = torch.zeros(()), torch.zeros(()), 0.0, 0
    for window in windows:
        after = []
        for rows, before in zip(split_rows(window, groups), split_rows(state.detach(), groups), strict=True):
            weights = (rows.labels >= 0).double() if rows.weights is None else rows.weights.double()
            plain = replace(rows, weights=None)
            outputs, states = zip(*read_window(model, model.settings, plain, before, by_token=True), strict=True)
            loss = loss + (torch.stack([o.loss for o in outputs], dim=1) * weights).sum()
            labels += float(weights.sum())
            recall_loss = recall_loss + torch.stack([o.recall_loss.sum() for o in outputs]).sum()
            after.append(states[-1])
        state = join_rows(after)
        assert window.targets is not None
        questions += int((window.targets > 0).sum())
    return loss / labels, recall_loss / max(questions, 1), state


def on_all_ranks(case: Case, device: torch.device) -> Run:
    """Train this rank's rows with the executor."""
    executor, run = make_executor(case, device), Run()
    step, reader = executor.engine.step, executor.gradients.model

    def look_and_step() -> None:
        run.gradients.append(full_gradients(executor.engine.module))
        step()

    def count(*arguments: Any) -> None:
        run.calls[-1] += 1

    executor.engine.step = look_and_step
    module, name = decoder_layers(reader.backbone)
    getattr(module, name)[0].mlp.register_forward_pre_hook(count)
    for group in steps(case, rank(), world_size()):
        run.calls.append(0)
        output = executor.train_batch(group)
        run.losses.append(output.loss)
        run.recall_losses.append(output.recall_loss or 0.0)
        run.norms.append(output.gradient_norm or 0.0)
    run.weights = get_weights(executor.engine.module)
    run.asleep = [name for name, module in reader.named_modules() if not module.training]
    executor.engine.destroy()
    return run


def make_executor(case: Case, device: torch.device, rows: int = ROWS, segments: int = DEPTH) -> ZeroExecutor:
    """The executor of a case, with the single process's weights, for some rows of all ranks and segments a step."""
    config = read_ds_config(PROJECT / "ds_configs" / f"{case.config}.json")
    if "offload" in case.config and case.optimizer == "AdamW":  # torch's optimizer, so that nothing is compiled
        config |= {"zero_force_ds_cpu_optimizer": False, "optimizer": {"type": "auto", "params": {"torch_adam": True}}}
    if "zero3" in case.config:  # by default DeepSpeed does not shard small weights, and all weights here are small
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if "hpz" in case.config:  # two nodes of two ranks
        config["zero_optimization"]["zero_hpz_partition_size"] = 2
    precision = "fp32" if case.precision == "fp64" else case.precision
    settings = EngineSettings(precision, rows // world_size(), segments, CLIPPING, *OPTIMIZERS[case.optimizer])
    config = fill_ds_config(config, settings)
    model = build_hmt(BACKBONE, case.memory, ds_config=config, precision=precision, train=case.train, device=device)
    set_weights(model, start_weights(case))
    model.eval()  # as a model read from a folder is
    depth = segments // case.accumulation
    options = ExecutorOptions(config, precision, device, depth, case.compute())
    return in_float64(model, options) if case.precision == "fp64" else ZeroExecutor(model, options)


def in_float64(model: HMT, options: ExecutorOptions) -> ZeroExecutor:
    """Make an executor whose weights, memories and gradients are float64, of which DeepSpeed knows nothing.

    At stage 0 alone: from stage 1 on weights are views of buffers that ZeRO's optimizers make in float32.
    """
    accelerator = get_accelerator()
    known = accelerator.supported_dtypes()
    accelerator.supported_dtypes = lambda: list(dict.fromkeys([*known, torch.float64]))
    with patch.dict(build_engine.DTYPES, fp32=torch.float64):
        executor = ZeroExecutor(model, options)
    executor.engine.module.double()
    return executor


def full_gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The reduced gradient of every trained weight, gathered from its shards. A collective: every rank must call it."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {n: safe_get_full_grad(p).detach().double().to("cpu", copy=True) for n, p in trained.items()}


def worst(got: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error of any tensor, and its name; the floor is for gradients that are zero in theory."""
    largest = max(float(value.norm()) for value in expected.values())
    # the gradient of a weight that is one number, a sum of terms of both signs, may be near zero
    floors = {n: (1e-6 if value.numel() > 1 else 1e-3) * largest for n, value in expected.items()}
    assert got.keys() == expected.keys()
    errors = {n: float((got[n] - e).norm()) / max(float(e.norm()), floors[n]) for n, e in expected.items()}
    return max((error, name) for name, error in errors.items())


def compare(case: Case, got: Run, expected: Run) -> dict[str, Any]:
    """Compute a row of the table."""
    per_step = [worst(g, e) for g, e in zip(got.gradients, expected.gradients, strict=True)]
    start, trained = start_weights(case), expected.gradients[0]
    gradient, name = max(per_step)
    return {
        "case": astuple(case),
        "gradient": gradient,
        "gradient_of": name,
        "first_gradient": per_step[0][0],
        "whole_gradient": whole_error(got.gradients[0], expected.gradients[0]),
        "weights": worst({n: w.float() for n, w in got.weights.items()}, expected.weights)[0],
        "loss": max(abs(g / e - 1) for g, e in zip(got.losses, expected.losses, strict=True)),
        "recall_loss": max(abs(g - e) for g, e in zip(got.recall_losses, expected.recall_losses, strict=True)),
        "recall_losses": expected.recall_losses,
        "norm": max(abs(g / e - 1) for g, e in zip(got.norms, expected.norms, strict=True)),
        "norms": expected.norms,
        "compared": len(trained),
        "moved": [n for n, w in got.weights.items() if n not in trained and not torch.equal(w.float(), start[n])],
        "calls": got.calls,
        "asleep": got.asleep,
        "still": [n for n in trained if torch.equal(got.weights[n].float(), start[n])],
    }


def whole_error(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The relative error of all gradients as one vector."""
    difference = torch.cat([(got[n] - e).flatten() for n, e in expected.items()])
    return float(difference.norm() / torch.cat([e.flatten() for e in expected.values()]).norm())


def be_a_rank(cases: list[Case], result: Path) -> None:
    """Run cases one after the other in one process group."""
    device = join(timeout_minutes=2)
    rows = []
    for case in cases:
        memory = {name: getattr(case, name) for name in ("mode", "interface", "recalled", "recall_loss", "loss")}
        plain = replace(Case("one", case.train, case.precision, case.accumulation), **memory)
        expected = in_one_process(plain, world_size() if case.recall_loss else 1)
        rows.append(compare(case, on_all_ranks(case, device), expected))
        gc.collect()  # DeepSpeed's engines are in reference cycles
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


def run_cases(cases: list[Case], **options: Any) -> list[dict[str, Any]]:
    """Run some cases; ``options`` go to run_ranks."""
    return run_ranks("zero_gradients.py", [astuple(case) for case in cases], **options)


def print_table() -> None:
    """Print the largest relative errors of three steps for every case."""
    figures = ("gradient", "weights", "loss", "norm", "whole_gradient")
    print(f"{' '.join(field.name for field in fields(Case)):80}", *figures, "worst in")
    for row in run_cases(GRID + POLICIES + ACCUMULATION + BF16 + ADAPTED_GRID + COUNTED + FLOAT64, timeout=3600):
        errors = [f"{row[key]:.1e}" for key in figures]
        print(f"{' '.join(map(str, row['case'])):80}", *errors, row["gradient_of"])


if __name__ == "__main__":
    if "RANK" in os.environ:
        be_a_rank([Case(*values) for values in json.loads(sys.argv[1])], Path(sys.argv[2]))
    else:
        print_table()
