"""A second run of the same shapes compiles nothing: torch's caches of compiled kernels serve all of them."""

import json
import subprocess
import sys

import pytest
from ranks import PROJECT, cpu_environment
from tiny_recipe import make_materials, write_recipe

COUNT = """
import json, sys
import hmt_ds.train
from torch._dynamo.utils import counters
code = hmt_ds.train.main()
print(json.dumps([code, counters["inductor"], counters["aot_autograd"]]))
"""


@pytest.mark.slow
def test_compiled_kernels_are_found_by_the_next_run(tmp_path):
    make_materials(tmp_path)
    words = [str(write_recipe(tmp_path, 1)), "--training.steps", "1", "--compute.kernels", "compile"]
    words += ["--schedule.params", "{warmup_num_steps: 1}"]
    found = []
    for name in ("first", "second"):  # runs with folders of their own
        run = subprocess.run(
            [sys.executable, "-c", COUNT, *words, "--training.output", str(tmp_path / name)],
            env=cpu_environment(TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "kernels")),
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stderr
        found.append(json.loads(run.stdout.splitlines()[-1]))
    (_, compiled, traced), (code, again, traced_again) = found
    assert code == 0 and compiled["fxgraph_cache_miss"] >= 2 and traced["autograd_cache_miss"] >= 2
    assert again["fxgraph_cache_hit"] == compiled["fxgraph_cache_miss"] and "fxgraph_cache_miss" not in again
    assert traced_again["autograd_cache_hit"] == traced["autograd_cache_miss"]
    assert not [name for name in (*again, *traced_again) if "bypass" in name or name == "autograd_cache_miss"]
