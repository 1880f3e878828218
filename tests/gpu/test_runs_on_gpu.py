"""On a GPU: runs that resume, in 16 bits or with a part of the optimizer on the host, are the undisturbed ones.

Run by hand: pytest -m gpu tests/gpu.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from ranks import PROJECT
from tiny_recipe import EVERY, STEPS, make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
FIXED = "--compute.kernels plain --compute.recompute segment --compute.summary_batch 1 --compute.cuda_graphs never"


def run(recipe: Path, output: Path, *more: str) -> torch.Tensor:
    """Losses and gradient norms of a run on one GPU, resumed where it has a checkpoint. ``[steps, 2]``"""
    before = output.exists()
    words = [*FIXED.split(), "--checkpoint.resume", "auto", *more]
    code, printed = train(recipe, output, *words, ranks=1, DS_ACCELERATOR="cuda")
    assert code == 0 and ("resumed from" in printed) == before, printed
    return torch.tensor([[row["loss"], row["gradient_norm"]] for row in read_metrics(output / "metrics.jsonl")])


def cut_short(output: Path, copy: Path) -> Path:
    """The run as it was before its last checkpoint."""
    shutil.copytree(output, copy)
    shutil.rmtree(copy / f"checkpoints/step_{STEPS:06d}")
    (copy / "checkpoints/latest").write_text(f"step_{STEPS - EVERY:06d}")
    return copy


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("interface", ["paper", "adapted"])
def test_resumed_in_16_bits(tmp_path, interface, precision):
    """Dropout's state of the GPU, and fp16's scale of the loss, are in the checkpoint."""
    make_materials(tmp_path)
    recipe, whole = write_recipe(tmp_path, 2), tmp_path / "whole"
    words = ("--model.precision", precision, "--memory.interface", interface)
    losses = run(recipe, whole, *words)
    assert len(losses) == STEPS
    assert torch.equal(run(recipe, cut_short(whole, tmp_path / "resumed"), *words), losses)


def test_part_of_the_optimizer_on_the_host(tmp_path):
    """The learning rate warms up and a checkpoint has the states, whichever part they are of."""
    make_materials(tmp_path)
    recipe, words = write_recipe(tmp_path, 3), {}
    config = json.loads((PROJECT / "ds_configs/zero3_offload.json").read_text())
    for name, ratio in (("whole", 1.0), ("part", 0.5)):
        zero = config["zero_optimization"] | {"sub_group_size": 5000}
        zero["offload_optimizer"] = {"device": "cpu", "ratio": ratio}
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(config | {"zero_optimization": zero}))
        words[name] = ["--deepspeed", str(file)]
    losses = run(recipe, tmp_path / "part", *words["part"])
    assert len(losses) == STEPS
    resumed = run(recipe, cut_short(tmp_path / "part", tmp_path / "resumed"), *words["part"])
    assert torch.equal(resumed, losses)
    torch.testing.assert_close(run(recipe, tmp_path / "whole", *words["whole"]), losses, rtol=1e-5, atol=0)
