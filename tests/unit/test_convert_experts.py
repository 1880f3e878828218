"""Mixtures of experts: files hold a weight for each expert, transformers' model one for all experts of a layer."""

from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hmt_ds.conversion.from_run import RunWeights
from hmt_ds.conversion.skeleton import skeleton
from hmt_ds.conversion.weights import tensor_weights
from hmt_ds.memory import MemorySettings

CONFIG = AutoConfig.for_model(
    "mixtral",
    vocab_size=60,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_local_experts=3,
    num_experts_per_tok=2,
)
SETTINGS = MemorySettings(segment_length=8, recall_dim=8)


def test_frozen_ones_come_through_transformers(tmp_path):
    """Frozen experts are loaded through transformers; the trained memory is random here."""
    backbone = AutoModelForCausalLM.from_config(CONFIG)
    backbone.save_pretrained(tmp_path)
    model = SimpleNamespace(source=str(tmp_path), train="frozen", trust_remote_code=False)
    shapes = skeleton(CONFIG, SETTINGS).named_parameters()
    trained = {name: torch.rand(weight.shape) for name, weight in shapes if not name.startswith("backbone.")}
    parts = RunWeights(SimpleNamespace(model=model), tensor_weights(trained), CONFIG, SETTINGS)
    found, expected = parts.part("model"), backbone.state_dict()
    assert {n for n in found.shapes if n.startswith("backbone.")} == {f"backbone.model.{name}" for name in expected}
    assert all(torch.equal(found.read(f"backbone.model.{name}"), weight) for name, weight in expected.items())
    assert all(torch.equal(found.read(name), weight) for name, weight in trained.items())
