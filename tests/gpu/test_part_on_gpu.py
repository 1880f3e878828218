"""On a GPU: with a part of the optimizer on the host a run is the one with all of it there, resumed too.

Run by hand: pytest -m gpu tests/gpu.
"""

import json
import shutil

import pytest
import torch
from ranks import PROJECT
from tiny_recipe import EVERY, STEPS, make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_is_the_run_with_all_of_it(tmp_path):
    """The learning rate warms up and a checkpoint has the states, whichever part they are of."""
    make_materials(tmp_path)
    recipe, losses = write_recipe(tmp_path, 3), {}
    config = json.loads((PROJECT / "ds_configs/zero3_offload.json").read_text())
    for name, ratio in (("whole", 1.0), ("part", 0.5), ("resumed", 0.5)):
        zero = config["zero_optimization"] | {"sub_group_size": 5000}
        zero["offload_optimizer"] = {"device": "cpu", "ratio": ratio}
        file, run = tmp_path / f"{name}.json", tmp_path / name
        file.write_text(json.dumps(config | {"zero_optimization": zero}))
        words = ["--deepspeed", str(file), "--checkpoint.resume", "auto"]
        if name == "resumed":
            shutil.copytree(tmp_path / "part", run)
            shutil.rmtree(run / f"checkpoints/step_{STEPS:06d}")
            (run / "checkpoints/latest").write_text(f"step_{STEPS - EVERY:06d}")
        code, printed = train(recipe, run, *words, ranks=1, DS_ACCELERATOR="cuda")
        assert code == 0 and ("resumed from" in printed) == (name == "resumed"), printed
        losses[name] = torch.tensor(
            [[row["loss"], row["gradient_norm"]] for row in read_metrics(run / "metrics.jsonl")]
        )
    assert len(losses["whole"]) == STEPS and torch.equal(losses["part"], losses["resumed"])
    torch.testing.assert_close(losses["part"], losses["whole"], rtol=1e-5, atol=0)
