"""What is imported by `hmt-ds` and by its ranks: each process pays for it before the first step."""

import re
import subprocess
import sys
from collections import Counter

from ranks import PROJECT, cpu_environment
from tiny_recipe import make_materials, write_recipe

UNNEEDED = ("mlflow.tracking", "peft", "wandb", "tensorboard", "torch._inductor.compile_fx")
LIBRARIES = ("torch", "deepspeed.runtime.engine", "transformers", "datasets.arrow_dataset")


def imported(*words: str) -> Counter[str]:
    """How many processes of a Python command imported each module."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        env=cpu_environment(PYTHONPROFILEIMPORTTIME="1"),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    return Counter(re.findall(r"^import time:.*\| +(\S+)$", run.stderr, re.MULTILINE))


def test_the_command_line_imports_no_library():
    found = imported("-m", "hmt_ds.cli", "--version")
    assert found["hmt_ds.launch.start"] == 1
    assert [name for name in ("numpy", "pandas", "matplotlib", *LIBRARIES, *UNNEEDED) if found[name]] == []


def test_a_run_imports_each_library_once_per_process(tmp_path):
    """One process checks the recipe and becomes DeepSpeed's launcher, and each rank is one more."""
    make_materials(tmp_path)
    words = ("train", str(write_recipe(tmp_path, 1)), "--ranks", "2", "--training.steps", "1")
    found = imported("-m", "hmt_ds.cli", *words, "--schedule.params", "{warmup_num_steps: 1}")
    assert {name: found[name] for name in LIBRARIES} == dict.fromkeys(LIBRARIES, 3)
    assert [name for name in UNNEEDED if found[name]] == []
    assert found["deepspeed.launcher.runner"] == 0
    assert found["matplotlib"] == 1  # rank 0 plots the loss, at the end
