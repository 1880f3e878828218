"""Resume checkpoints of one layout in another and compare the next losses with those of an undisturbed run.

    python tests/distributed/layouts.py [fp32|bf16]

saves in each of 15 layouts (5 configurations x 1, 2, 4 ranks), resumes each save in all of them, and prints a table of
225 pairs. run_ranks starts this file on every rank.
"""

import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ranks import run_ranks
from tiny_runs import DEPTH, get_weights, windows
from zero_cases import Case
from zero_gradients import make_executor

from hmt_ds.checkpoint import Retention, RunPosition, Saver, load_checkpoint
from hmt_ds.distributed.process_group import end_process, join, rank, world_size
from hmt_ds.parallel.zero import ZeroExecutor

CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
RANKS = (1, 2, 4)
BEFORE, AFTER = 2, 5  # steps before and after the checkpoint; more than one epoch


def executor_of(config: str, case: dict[str, Any], device: torch.device) -> ZeroExecutor:
    """A new executor with the common initial weights."""
    return make_executor(Case(config, reduction="step", **case), device)


def losses(executor: ZeroExecutor, first: int, number: int) -> list[float]:
    """Losses of some steps, starting at step ``first``."""
    every = windows(rank(), world_size(), DEPTH)
    return [executor.train_batch([every[step % len(every)]]).loss for step in range(first, first + number)]


def save(folder: Path, config: str, case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Train, save and continue training; return the losses after the checkpoint."""
    executor = executor_of(config, case, device)
    losses(executor, 0, BEFORE)
    saver = Saver(folder / f"{config}-{world_size()}", {}, Retention())
    saver.begin(executor, RunPosition(step=BEFORE))
    path = saver.finish()
    expected = losses(executor, BEFORE, AFTER)
    weights = {name: weight.float().norm().item() for name, weight in get_weights(executor.engine.module).items()}
    executor.engine.destroy()
    return {"path": str(path), "losses": expected, "weights": weights}


def resume(saved: dict[str, Any], config: str, case: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Resume a checkpoint; return the errors of the next losses and of the weights after them."""
    executor = executor_of(config, case, device)
    with torch.no_grad():
        for parameter in executor.engine.module.parameters():
            if parameter.requires_grad:
                parameter.data.fill_(torch.nan)  # everything must come from the checkpoint
    assert load_checkpoint(executor, Path(saved["path"])).step == BEFORE
    found = losses(executor, BEFORE, AFTER)
    weights = {name: weight.float().norm().item() for name, weight in get_weights(executor.engine.module).items()}
    executor.engine.destroy()
    return {
        "loss": max(abs(one / other - 1) for one, other in zip(found, saved["losses"], strict=True)),
        "weights": max(abs(weights[name] / norm - 1) for name, norm in saved["weights"].items()),
        "identical": found == saved["losses"],
    }


def be_a_rank(task: dict[str, Any], result: Path) -> None:
    """Save in all configurations, or resume all saves in all of them."""
    device = join(timeout_minutes=2)
    rows: Any = {}
    if "folder" in task:
        for config in task["configs"]:
            rows[f"{config}-{world_size()}"] = save(Path(task["folder"]), config, task["case"], device)
            gc.collect()
    else:
        for (name, saved), config in itertools.product(task["saved"].items(), task["configs"]):
            rows[f"{name} -> {config}-{world_size()}"] = resume(saved, config, task["case"], device)
            gc.collect()
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


def run_pairs(
    configs: Sequence[str] = CONFIGS, ranks: Sequence[int] = RANKS, timeout: float = 1500, **case: Any
) -> dict[str, dict[str, Any]]:
    """Run all pairs of some layouts; ``case`` has options such as the precision."""
    with tempfile.TemporaryDirectory() as folder:
        common = {"configs": configs, "case": case}
        saved: dict[str, Any] = {}
        for number in ranks:
            saved |= run_ranks("layouts.py", common | {"folder": folder}, ranks=number, timeout=timeout)
        found: dict[str, Any] = {}
        for number in ranks:
            found |= run_ranks("layouts.py", common | {"saved": saved}, ranks=number, timeout=timeout)
        return found


def print_table(precision: str) -> None:
    """Print the largest relative difference of the next losses, and of any weight's norm after them, for every pair."""
    began = time.monotonic()
    found = run_pairs(precision=precision)
    for pair, row in found.items():
        print(f"{pair:40} {row['loss']:.1e} {row['weights']:.1e}{' identical' if row['identical'] else ''}")
    worst = max(found, key=lambda pair: found[pair]["loss"])
    print(f"{len(found)} pairs; the largest difference of a loss is {found[worst]['loss']:.1e} ({worst})")
    print(f"{precision}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    if "RANK" in os.environ:
        be_a_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
    else:
        print_table(*sys.argv[1:] or ["fp32"])
