"""Frozen weights in 4 bits with LoRA: gradients, sizes, reasons to refuse them. The first two need bitsandbytes."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tiny import GPT2, LLAMA, L, document, make_settings, make_window, one_graph, segment_wise, take_gradients

from hmt_ds.backbones import LoraSettings, is_quantized, quantize_problems, read_config
from hmt_ds.backbones.quantize import linear_layers
from hmt_ds.distributed.deepspeed_internals import full_numel
from hmt_ds.memory import HMT, MemoryState
from hmt_ds.parallel.build_hmt import build_hmt
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.memory_parts import PACKED, states
from hmt_ds.planning.model_size import count

WIDE = LLAMA | {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 weights share a scale
LORA = LoraSettings(rank=2)
needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="pip install bitsandbytes")


def build(quantize: Any) -> HMT:
    """A model in float32 with adapters that change its output."""
    lora = replace(LORA, quantize=quantize)
    model = build_hmt(WIDE, make_settings(), ds_config={}, train="lora", lora=lora, seed=3).eval()
    torch.manual_seed(4)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def state_of(model: HMT) -> MemoryState:
    """The state in front of two documents."""
    settings = model.settings
    size = (2, settings.memory_tokens, model.backbone.dim, settings.sensory_tokens)
    return MemoryState.empty(*size, dtype=torch.float32, device=torch.device("cpu"))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_gradients_are_those_of_the_unpacked_weights(kind):
    """Of adapters and memory, over a window of four segments, beside one graph of a plain model with these weights."""
    from bitsandbytes.functional import dequantize_4bit

    packed, plain = build(kind), build("none")
    window = make_window([[document(4 * L)], [document(3 * L - 1)]])
    untouched, _ = one_graph(plain, window, state_of(plain))
    plain.zero_grad()
    for name in linear_layers(plain.backbone.model):
        if hasattr(packed.backbone.model.get_submodule(name), "quant_state"):
            stored = packed.backbone.model.get_submodule(name).weight
            plain.backbone.model.get_submodule(name).weight.data.copy_(dequantize_4bit(stored.data, stored.quant_state))
    expected, _ = one_graph(plain, window, state_of(plain))
    wanted = take_gradients(plain)
    totals, _ = segment_wise(packed, window, state_of(packed))
    assert is_quantized(packed.backbone) and not is_quantized(plain.backbone)
    assert abs(float(expected - untouched)) > 0.01  # 4 bits are not the weights themselves
    assert float(totals.loss) == pytest.approx(float(expected), rel=1e-5)
    trained = {name for name, weight in packed.named_parameters() if weight.requires_grad}
    assert trained == {name for name, weight in plain.named_parameters() if weight.requires_grad}
    found = take_gradients(packed)
    assert len(trained) > 14 * 2
    for name in trained:
        error = float((found[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-6))
        assert error < 1e-4, (name, error)


@needs_bitsandbytes
def test_packed_weights_count_as_whole_ones():
    packed, plain = build("nf4"), build("none")
    sizes = [{name: full_numel(weight) for name, weight in model.named_parameters()} for model in (packed, plain)]
    assert sizes[0] == sizes[1]
    stored = [sum(w.numel() * w.element_size() for w in model.parameters()) for model in (packed, plain)]
    linear = sum(weight.numel() for name, weight in plain.named_parameters() if name.endswith("base_layer.weight"))
    assert stored[1] - stored[0] == 3.5 * linear  # half a byte instead of four


@pytest.mark.parametrize(
    ("changes", "source", "words"),
    [
        ({}, LLAMA, []),
        ({"train": "whole"}, LLAMA, ["model.train is whole: take lora"]),
        ({"stage": 3}, LLAMA, ["ZeRO-3 cannot shard packed weights: take ds_configs/zero2.json, or none"]),
        ({"stages": 2}, LLAMA, ["pipeline.stages is 2: take 1, or none"]),
        ({}, GPT2, ["gpt2 has no layers of the class torch.nn.Linear"]),
        ({"stages": 2, "train": "frozen"}, LLAMA, ["model.train is frozen", "pipeline.stages is 2"]),
    ],
)
def test_what_cannot_be_quantized_is_refused(monkeypatch, changes, source, words):
    options = {"train": "lora", "stage": 2, "stages": 1} | changes
    config = read_config(source)
    monkeypatch.setattr("hmt_ds.backbones.quantize.find_spec", lambda name: name)
    lines = quantize_problems(config, replace(LORA, quantize="nf4"), **options)
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True)), lines
    assert quantize_problems(config, LORA, **options) == []


def test_bitsandbytes_must_be_installed(monkeypatch):
    monkeypatch.setattr("hmt_ds.backbones.quantize.find_spec", lambda name: None)
    lines = quantize_problems(read_config(LLAMA), replace(LORA, quantize="nf4"), train="lora", stage=2, stages=1)
    assert lines == [
        "model.lora.quantize is nf4, but bitsandbytes is not installed: pip install bitsandbytes, or take none"
    ]


def test_the_plan_counts_half_a_byte():
    plain, packed = (
        count(read_config(WIDE), make_settings(), "lora", replace(LORA, quantize=q)) for q in ("none", "nf4")
    )
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)
    assert (plain.packed, packed.packed) == (0, linear)
    assert replace(packed, packed=0) == plain
    works = [Work(size, make_settings(), depth=4, rows=1) for size in (plain, packed)]
    whole, less = (states(work, Layout(stage=2, reduction="step", rows=1), 1)["weights"] for work in works)
    assert whole - less == pytest.approx(linear * (works[0].number_bytes - PACKED))
