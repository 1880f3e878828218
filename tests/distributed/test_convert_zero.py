"""Convert DeepSpeed's own checkpoints (stages 0 to 3, universal) to Hugging Face folders."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from deepspeed.checkpoint import ds_to_universal
from ranks import run_ranks
from safetensors.torch import load_file
from tiny_runs import BACKBONE, MEMORY

from hmt_ds.conversion.convert import convert
from hmt_ds.conversion.convert_options import ConvertOptions

CONFIGS = ("zero0", "zero1", "zero2", "zero3")
SIZES = ("segment_length", "sensory_tokens", "cached_memories")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint of two ranks at each stage, and one of the adapted interface."""
    folder = tmp_path_factory.mktemp("zero")
    (folder / "backbone").mkdir()
    (folder / "backbone/config.json").write_text(json.dumps(BACKBONE))
    cases = {config: {"config": config} for config in CONFIGS}
    cases["adapted"] = {"config": "zero3", "interface": "adapted"}
    run_ranks("zero_folders.py", {"folder": str(folder), "cases": cases})
    return folder


def check(folder: Path, source: Path, name: str) -> None:
    """Assert that every weight equals the engine's, bit for bit."""
    words = tuple(word for key in SIZES for word in (f"--memory.{key}", str(getattr(MEMORY, key))))
    convert(source, folder / f"{name}-hf", ConvertOptions(backbone=str(folder / "backbone")), words)
    found = load_file(folder / f"{name}-hf" / "model.safetensors")
    expected = load_file(folder / name.partition("-")[0] / "weights.safetensors")
    assert {n.removeprefix("hmt.") for n in found} == expected.keys()
    assert all(torch.equal(found[f"hmt.{n}"], w) for n, w in expected.items())


@pytest.mark.parametrize("config", CONFIGS)
def test_zero(folder, config):
    """The source is the checkpoint folder, or its parent as accelerate's users name it."""
    check(folder, folder / config, config)
    check(folder, folder / config / "pytorch_model", f"{config}-tag")


def test_the_adapted_interface(folder):
    """It is known by the names of its weights."""
    check(folder, folder / "adapted", "adapted")
    memory = json.loads((folder / "adapted-hf/config.json").read_text())["memory"]
    assert (memory["interface"], memory["mode"], memory["memory_tokens"], memory["recall_dim"]) == (
        "adapted",
        "hmt",
        2,
        24,
    )


@pytest.mark.parametrize("config", ["zero1", "zero3"])
def test_universal(folder, config):
    target = folder / f"{config}-universal"
    options = {"keep_temp_folder": False, "num_extract_workers": 1, "num_merge_workers": 1, "strict": True}
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(folder / config / "pytorch_model"),
            output_folder=str(target),
            inject_missing_state=True,
            **options,
        )
    )
    check(folder, target, f"{config}-universal")
