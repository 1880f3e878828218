"""Settings that contradict DeepSpeed's file are said before anything starts."""

import pytest
from test_ring_input import LLAMA, recipe_of

from hmt_ds.backbones import read_config
from hmt_ds.feasible import check_compute


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "none", None])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_clipped_when_they_are_scaled_no_more(precision, device, stage):
    """DeepSpeed clips fp16's scaled gradients where ZeRO-1 or 2 offloads the optimizer, and nowhere else."""
    zero = {"stage": stage} | ({"offload_optimizer": {"device": device}} if device else {})
    recipe = recipe_of({"precision": precision}, stages=1)
    found = check_compute(recipe, read_config(LLAMA), {"zero_optimization": zero})
    if precision == "fp16" and device == "cpu" and stage < 3:
        (line,) = found
        assert line.startswith(f"model.precision: not fp16 at ZeRO-{stage} with an offloaded optimizer")
    else:
        assert found == []
