"""Mixtures of experts: their files have a weight for each expert, transformers' model has one for all of a layer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hmt_ds.backbones import LoraSettings
from hmt_ds.conversion import ConversionError
from hmt_ds.conversion.skeleton import skeleton
from hmt_ds.conversion.weights import tensors
from hmt_ds.convert import RunParts
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
SETTINGS = MemorySettings("hmt", segment_length=8, recall_dim=8)


def parts_of_run(folder: Any, train: str) -> tuple[RunParts, torch.nn.Module]:
    """A run on a stored backbone, and the backbone. What was trained is random."""
    backbone = AutoModelForCausalLM.from_config(CONFIG)
    backbone.save_pretrained(folder)
    lora = SimpleNamespace(model_dump=lambda: vars(LoraSettings()))
    model = SimpleNamespace(source=str(folder), train=train, lora=lora, trust_remote_code=False)
    shapes = skeleton(CONFIG, SETTINGS, LoraSettings() if train == "lora" else None).named_parameters()
    trained = {n: torch.rand(w.shape) for n, w in shapes if "lora_" in n or not n.startswith("backbone.")}
    return RunParts(SimpleNamespace(model=model), tensors(trained), CONFIG, SETTINGS), backbone


def test_frozen_ones_come_through_transformers(tmp_path):
    parts, backbone = parts_of_run(tmp_path, "frozen")
    found, expected = parts.of("model"), backbone.state_dict()
    assert {n for n in found.shapes if n.startswith("backbone.")} == {f"backbone.model.{name}" for name in expected}
    assert all(torch.equal(found.read(f"backbone.model.{name}"), weight) for name, weight in expected.items())
    memory = [name for name in found.shapes if not name.startswith("backbone.")]
    assert memory and all(torch.equal(found.read(name), parts.trained.read(name)) for name in memory)


def test_adapters_of_experts_are_not_left_out(tmp_path):
    """They would be silently: no layer's weight has their names."""
    parts, _ = parts_of_run(tmp_path, "lora")
    with pytest.raises(ConversionError, match="experts has an adapter that cannot be put in: take --what adapter"):
        parts.of("model")
    assert any("experts" in name for name in parts.of("adapter").shapes)
