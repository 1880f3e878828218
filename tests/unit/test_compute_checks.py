"""Checks of compute settings against DeepSpeed's file and the backbone."""

import pytest
from test_pipeline_checks import LLAMA, recipe_of

from hmt_ds.backbones import read_config
from hmt_ds.preflight.compute_checks import check_compute


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "none", None])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_gradients_are_clipped_after_unscaling(precision, device, stage):
    """DeepSpeed clips fp16 gradients while they are scaled only where ZeRO-1 or 2 offloads the optimizer."""
    zero = {"stage": stage} | ({"offload_optimizer": {"device": device}} if device else {})
    recipe = recipe_of({"precision": precision}, stages=1)
    found = check_compute(recipe, read_config(LLAMA), {"zero_optimization": zero})
    if precision == "fp16" and device == "cpu" and stage < 3:
        (line,) = found
        assert line.startswith(f"model.precision: not fp16 at ZeRO-{stage} with an offloaded optimizer")
    else:
        assert found == []


@pytest.mark.parametrize(
    ("config", "model", "refused"),
    [
        (LLAMA, {}, False),
        (LLAMA | {"attention_dropout": 0.1}, {}, True),
        ({"model_type": "opt"}, {}, True),
        ({"model_type": "opt", "dropout": 0.0}, {}, False),
        (LLAMA, {"train": "lora", "lora": {"dropout": 0.1}}, True),
        (LLAMA, {"train": "whole", "lora": {"dropout": 0.1}}, False),
    ],
)
def test_dropout_rules_out_cuda_graphs(monkeypatch, config, model, refused):
    """OPT has a dropout of 0.1 unless its configuration says otherwise."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("hmt_ds.preflight.compute_checks.memory_of_this_machine", lambda: (10**15, "the GPU"))
    recipe = recipe_of(model, compute={"cuda_graphs": "always"}, stages=1)
    found = check_compute(recipe, read_config(config), {"zero_optimization": {"stage": 2}})
    assert [("has dropout" in line) for line in found] == [True] * refused


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["rwkv", "mamba"])
def test_rwkv_is_refused_at_stage_3(kind, stage):
    """Its initialization fails on sharded weights, also when all weights are then read from files."""
    config = read_config({"model_type": kind, "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2})
    found = check_compute(recipe_of({}, stages=1), config, {"zero_optimization": {"stage": stage}})
    assert [line[:40] for line in found] == ["deepspeed: transformers cannot load rwkv"] * (
        kind == "rwkv" and stage == 3
    )
