"""ZeRO-3's gradient shard during a step, and where buffers are. Gradients themselves: tests/distributed."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tiny import GPT2, LLAMA, make_model

from hmt_ds.parallel.gradients import ReducePerSegment, ReducePerStep


@pytest.mark.parametrize("device", ["none", "cpu"])
def test_the_shard_takes_no_memory_during_the_step(device):
    """Afterwards it is zero, because DeepSpeed looks for NaN in its padding too. An offloaded shard stays."""
    shards = torch.full((7,), torch.nan)
    part = shards.narrow(0, 2, 3)
    optimizer = SimpleNamespace(grad_partitions_flat_buffer=shards, offload_optimizer=device == "cpu")
    engine = SimpleNamespace(optimizer=optimizer)
    with ReducePerStep.free_gradient_shard(SimpleNamespace(engine=engine)):
        assert shards.untyped_storage().nbytes() == (0 if device == "none" else 28)
    if device == "none":
        assert shards.tolist() == [0] * 7 and part.tolist() == [0] * 3


def test_other_stages_have_none():
    with ReducePerStep.free_gradient_shard(SimpleNamespace(engine=SimpleNamespace(optimizer=object()))):
        pass


@pytest.mark.parametrize("backbone", [LLAMA, GPT2])
@pytest.mark.parametrize("way", ["once per step", "after each segment"])
def test_buffers_lie_on_the_engine_s_device(way, backbone):
    """A pretrained model is loaded on the host; DeepSpeed moves it, but not the copy that forward passes use."""
    model = make_model(backbone)
    model.register_buffer("constant", torch.zeros(2))
    gradients = ReducePerStep(model, nullcontext()) if way == "once per step" else ReducePerSegment(model)
    gradients.attach(SimpleNamespace(device=torch.device("meta"), zero_optimization_stage=lambda: 0))
    buffers = dict(gradients.model.named_buffers())
    assert len(buffers) > (backbone is LLAMA)
    assert {name: buffer.device.type for name, buffer in buffers.items()} == dict.fromkeys(buffers, "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
