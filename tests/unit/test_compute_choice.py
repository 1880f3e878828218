"""Resolve `compute: auto` on a CPU, on GPUs of a given memory, and at each ZeRO stage; and apply it to a model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_backbones import CONFIGS, OPT
from tiny import GPT2, LLAMA, make_model

from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.distributed.deepspeed_internals import full_numel
from hmt_ds.memory import HMT
from hmt_ds.parallel import compute_choice
from hmt_ds.parallel.compute_choice import prepare_layers, resolve, uses_dropout, whole_gradient_fits
from hmt_ds.parallel.layer_groups import LayerGroups
from hmt_ds.parallel.settings import ComputeSettings

AUTO = ComputeSettings()
CPU, GPU = torch.device("cpu"), torch.device("cuda")
FOUR = LLAMA | {"num_hidden_layers": 4}
CALM = dict.fromkeys(
    ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout", "layerdrop"), 0.0
)
GIB = 2**30


def at(stage: int, offload: bool = False, rows: int = 2, **offloaded: Any) -> dict[str, Any]:
    """A DeepSpeed configuration of a ZeRO stage, with or without an offloaded optimizer."""
    zero: dict[str, Any] = {"stage": stage} | ({"offload_optimizer": {"device": "cpu"} | offloaded} if offload else {})
    return {"train_micro_batch_size_per_gpu": rows, "zero_optimization": zero}


@pytest.fixture
def memory(monkeypatch):
    """Says how many bytes every rank has."""

    def has(size: float) -> None:
        monkeypatch.setattr(compute_choice, "capacity", lambda device: int(size))

    has(80 * GIB)
    return has


@pytest.fixture
def liger(monkeypatch):
    """Says whether liger-kernel has something for the backbone."""

    def knows(answer: bool) -> None:
        monkeypatch.setattr(compute_choice, "liger_knows", lambda model_type: answer)

    knows(False)
    return knows


def test_on_a_cpu():
    """Nothing is compiled or captured; settings that need a measurement stay auto."""
    found = resolve(AUTO, make_model(FOUR), at(3), CPU)
    assert found == replace(AUTO, reduction="step", kernels="plain", leaf_layers=4, cuda_graphs="never")
    assert found.recompute == found.summary_batch == "auto"


def test_what_was_said_stays(memory):
    said = ComputeSettings("selective", 3, "segment", 2, "plain", "never", spill=True)
    assert resolve(said, make_model(FOUR), at(3), GPU) == said


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_reduction_by_memory(memory, liger, stage, offload):
    """Once a step where weights, their float32 sums and the states leave a quarter of the memory; else each segment."""
    model, config = make_model(FOUR), at(stage, offload)
    numbers = sum(p.numel() for p in model.parameters())
    # float64 weights and their sums; DeepSpeed's states; at stage 3 the shards besides the whole weights
    needed = numbers * (8 + 4 + (0 if offload else 12) + (8 if stage == 3 else 0))
    for size, expected in ((needed / 0.75 * 1.01, "step"), (needed / 0.75 * 0.99, "segment")):
        memory(size)
        assert resolve(AUTO, model, config, GPU).reduction == expected


@pytest.mark.parametrize(("stage", "share"), [(3, 0.3), (2, 0.0)])
def test_a_part_of_the_states_is_offloaded(memory, liger, stage, share):
    """DeepSpeed offloads a part of the states only at stage 3."""
    model, config = make_model(FOUR), at(stage, True, ratio=0.7)
    needed = sum(p.numel() for p in model.parameters()) * (8 + 4 + 12 * share + (8 if stage == 3 else 0))
    for size, expected in ((needed / 0.75 * 1.01, True), (needed / 0.75 * 0.99, False)):
        memory(size)
        assert whole_gradient_fits(model, config, GPU) == expected


def test_sums_are_of_what_is_trained(memory):
    """A frozen backbone has no sums and no states: less memory will do."""
    model = make_model(FOUR)
    memory(20 * sum(p.numel() for p in model.parameters()))
    assert not whole_gradient_fits(model, at(2), GPU)
    model.backbone.requires_grad_(False)
    assert whole_gradient_fits(model, at(2), GPU)


def test_ranks_share_the_states(memory, monkeypatch):
    """Except at stage 0."""
    model = make_model(FOUR)
    memory(20 * sum(p.numel() for p in model.parameters()))
    monkeypatch.setattr(compute_choice, "world_size", lambda: 8)
    assert whole_gradient_fits(model, at(1), GPU) and not whole_gradient_fits(model, at(0), GPU)


def test_sharded_weights_count_whole():
    """At stage 3 ``numel()`` of a sharded parameter is 0, but its full size counts."""
    weight = torch.nn.Parameter(torch.zeros(6))
    assert full_numel(weight) == 6
    weight.data, weight.ds_numel = torch.empty(0), 6
    assert full_numel(weight) == 6


@pytest.mark.parametrize(
    ("reduction", "recompute", "known", "kernels"),
    [
        ("step", "auto", False, "compile"),
        ("step", "segment", True, "compile"),
        ("step", "selective", False, "plain"),
        ("step", "segment+layer", True, "liger"),
        ("segment", "auto", True, "liger"),
        ("segment", "auto", False, "plain"),
    ],
)
def test_kernels(memory, liger, reduction, recompute, known, kernels):
    """Compiled where neither DeepSpeed's hooks nor checkpoints are in a layer."""
    liger(known)
    compute = ComputeSettings(recompute=recompute, reduction=reduction)
    assert resolve(compute, make_model(FOUR), at(2), GPU).kernels == kernels
    assert resolve(compute, make_model(FOUR), at(2), CPU).kernels == "plain"


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_recurrent_layers_stay_as_they_are(memory, liger, kind):
    """Neither compiled nor captured, where a transformer's layers are both."""
    for config, kernels, graphs in ((CONFIGS[kind], "plain", "never"), (FOUR, "compile", "always")):
        found = resolve(AUTO, make_model(config), at(2), GPU)
        assert (found.kernels, found.cuda_graphs) == (kernels, graphs)


def test_leaves_by_memory(memory, liger):
    """The number of layers that fit into a fortieth of the memory: at least one, at most all."""
    model = make_model(FOUR)
    module, name = decoder_layers(model.backbone)
    layer = 8 * sum(p.numel() for p in getattr(module, name)[0].parameters())
    for layers, expected in ((0.1, 1), (1.5, 1), (2.5, 2), (3.5, 3), (100, 4)):
        memory(40 * layer * layers)
        assert resolve(AUTO, model, at(3), GPU).leaf_layers == expected


@pytest.mark.parametrize(
    ("change", "config", "graphs"),
    [
        ({}, at(2), "always"),
        ({"recompute": "none"}, at(0), "always"),
        ({"reduction": "segment"}, at(2), "never"),
        ({"recompute": "selective"}, at(2), "never"),
        ({}, at(3), "never"),
        ({}, at(1, offload=True), "never"),
        ({}, at(2, rows=2**30), "never"),  # arithmetic takes longer than launches
    ],
)
def test_graphs_are_captured_where_it_can_be_and_helps(memory, liger, change, config, graphs):
    assert resolve(replace(AUTO, **change), make_model(FOUR), config, GPU).cuda_graphs == graphs
    assert resolve(replace(AUTO, **change), make_model(FOUR), config, CPU).cuda_graphs == "never"


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        (GPT2, "resid_pdrop"),
        (LLAMA, "attention_dropout"),
        (OPT | {"model_type": "opt"}, "dropout"),  # no module shows it
        (OPT | {"model_type": "opt"}, "layerdrop"),
        (OPT | {"model_type": "opt"}, "attention_dropout"),
    ],
)
def test_dropout_is_not_captured(memory, liger, backbone, name):
    """A replay would draw the same numbers for ever, or other ones the second time."""
    for rate, graphs in ((0.1, "never"), (0.0, "always")):
        model = make_model(backbone | CALM | {name: rate})
        assert uses_dropout(model) == (rate > 0)
        assert resolve(AUTO, model, at(2), GPU).cuda_graphs == graphs


def arranged(stage: int = 2, **changes: Any) -> HMT:
    """A model after the changes that these settings make."""
    model = make_model(FOUR)
    prepare_layers(model, replace(ComputeSettings("auto", 1, "segment", 2, "plain", "never"), **changes), stage)
    return model


def test_leaves_only_where_deepspeed_gathers_layers():
    def sizes(model: HMT) -> list[int] | None:
        module, name = decoder_layers(model.backbone)
        layers = getattr(module, name)
        return [len(group.layers) for group in layers.groups] if isinstance(layers, LayerGroups) else None

    assert sizes(arranged(stage=3)) == [2, 2]
    assert sizes(arranged(stage=3, leaf_layers=3)) == [3, 1]
    assert sizes(arranged(stage=3, reduction="step")) is None
    assert sizes(arranged(stage=2)) is None


@pytest.mark.parametrize("recompute", ["none", "selective", "segment", "segment+layer"])
def test_checkpoints_only_where_they_were_asked_for(recompute):
    transformer = arranged(recompute=recompute).backbone.model
    assert transformer.is_gradient_checkpointing == (recompute in ("selective", "segment+layer"))


def test_liger_only_where_it_was_asked_for(monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(compute_choice, "use_liger", calls.append)
    arranged()
    assert calls == []
    assert arranged(kernels="liger").backbone is calls[0]
