"""Measure seconds and host memory of `hmt-ds convert` for a checkpoint of 1.1B weights with AdamW's states.

    python tests/benchmarks/convert_large.py FOLDER [DTYPE ...]

writes a checkpoint of launch/recipes/bench-1.1b.yaml on one CPU rank, 13 GB, and converts it to each type (bf16, fp32).
FOLDER must not exist; it is deleted afterwards. Each part runs in its own process; its peak is ``ru_maxrss``.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from hmt_ds.checkpoint import Retention, RunPosition, Saver
from hmt_ds.checkpoint.fragments import optimizer_buffers
from hmt_ds.config.load import load_recipe
from hmt_ds.distributed.deepspeed_internals import base_optimizer
from hmt_ds.distributed.process_group import end_process
from hmt_ds.training.build import build_executor
from hmt_ds.training.identity import identity
from hmt_ds.training.rank import prepare_together, run_as_rank

RECIPE = "launch/recipes/bench-1.1b.yaml"


def write(recipe_file: str, words: list[str], device: torch.device) -> None:
    """Write a run's folder with one checkpoint, of random weights."""
    folder, *overrides = words
    recipe = load_recipe(recipe_file, overrides)
    prepared = prepare_together(recipe, recipe_file, writes_output=False, with_data=False)
    executor = build_executor(recipe, prepared, device)
    add_states(executor.engine)
    saver = Saver(Path(folder) / "checkpoints", identity(recipe, prepared), Retention())
    saver.begin(executor, RunPosition(1))
    saver.finish()
    (Path(folder) / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))


def add_states(engine: Any) -> None:
    """Add AdamW's states without a step: numpy's zeros, which take no memory as long as they are only read."""
    for _, flat in optimizer_buffers(engine):
        states = {key: torch.from_numpy(np.zeros(flat.numel(), np.float32)) for key in ("exp_avg", "exp_avg_sq")}
        base_optimizer(engine).state[flat] = {"step": torch.zeros(())} | states


def measured(what: str, made: Path, *command: str) -> None:
    """Run a Python command; print its time and memory, and the size of the folder it created."""
    began = time.monotonic()
    pid = os.posix_spawn(sys.executable, [sys.executable, *command], os.environ)
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, what
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    seconds, peak = time.monotonic() - began, usage.ru_maxrss / 2**20
    print(f"{what}: {seconds:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of a core, ", end="")
    print(f"peak {peak:.2f} GiB, {size:,} bytes in {made.name}", flush=True)


def main(folder: Path, dtypes: list[str]) -> None:
    """Write the checkpoint and convert it to each type."""
    folder.mkdir(parents=True)
    try:
        measured("write", folder / "run", __file__, "write", RECIPE, str(folder / "run"))
        for dtype in dtypes:
            source, target = str(folder / "run"), folder / dtype
            command = ("-m", "hmt_ds.cli", "convert", source, str(target), "--dtype", dtype)
            measured(f"convert --dtype {dtype}", target, *command)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        del sys.argv[1]
        end_process(run_as_rank(write))
    main(Path(sys.argv[1]), sys.argv[2:] or ["bf16", "fp32"])
