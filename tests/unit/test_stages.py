"""Models cut into pipeline stages, which run one after the other give the whole model's logits, for every family."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from test_layer_groups import FOUR, LAYERS
from tiny import LLAMA, VOCABULARY, make_model

from hmt_ds.backbones import BackboneError, CausalLM, read_config
from hmt_ds.backbones.stages import LayerRange, embedding_width, layer_ranges, load_stage, trim_to_stage

IDS = torch.arange(1, 13)[None] * 5 % VOCABULARY  # longer than the sliding windows
KINDS = FOUR | {"llama, tied": FOUR["llama"] | {"tie_word_embeddings": True}}
KINDS = {kind: config for kind, config in KINDS.items() if kind not in ("granite", "stablelm", "mamba")}
each_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
each_split = pytest.mark.parametrize("sizes", [[2, 2], [1, 2, 1], [1, 1, 1, 1]], ids=str)


def stages_of(backbone: CausalLM, sizes: list[int]) -> list[CausalLM]:
    """Cut copies of a model into stages with the given numbers of layers."""
    stages = [copy.deepcopy(backbone) for _ in sizes]
    for stage, layers in zip(stages, layer_ranges(sizes), strict=True):
        trim_to_stage(stage, layers)
    return stages


def logits_through(stages: list[CausalLM]) -> torch.Tensor:
    hidden = stages[0].embed(IDS)
    for stage in stages:
        hidden = stage.decode(hidden)
    return stages[-1].logits(hidden)


@each_kind
@each_split
def test_one_after_the_other_they_are_the_whole(config, sizes):
    backbone = make_model(config).backbone
    whole = backbone.logits(backbone.decode(backbone.embed(IDS)))
    assert (logits_through(stages_of(backbone, sizes)) - whole).abs().max() < 1e-6


@each_kind
def test_weights_keep_their_names_and_every_one_has_a_stage(config):
    backbone = make_model(config).backbone
    whole = dict(backbone.named_parameters())
    names = [set(dict(stage.named_parameters())) for stage in stages_of(backbone, [1, 2, 1])]
    assert set.union(*names) == whole.keys()
    twice = {name for name in whole if sum(name in own for own in names) > 1}
    ends = backbone.model.get_input_embeddings().weight, backbone.model.get_output_embeddings().weight
    assert twice == {name for name, weight in whole.items() if weight is ends[0] is ends[1]}


@each_kind
def test_a_stage_reads_its_own_weights_alone(config, tmp_path):
    """Stages load from folders without the other stages' weights."""
    backbone = make_model(config).backbone
    backbone.model.save_pretrained(tmp_path / "whole")
    loaded = []
    for number, (stage, layers) in enumerate(zip(stages_of(backbone, [1, 2, 1]), layer_ranges([1, 2, 1]), strict=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "whole/config.json").read_text())
        weights = {name: weight.detach().clone() for name, weight in stage.model.named_parameters()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        whole = read_config(str(folder))
        loaded.append(
            CausalLM(load_stage(str(folder), layers, whole, dtype=torch.float64).eval(), embedding_width(whole))
        )
    assert torch.equal(logits_through(loaded), logits_through(stages_of(backbone, [1, 2, 1])))


def test_a_weight_that_is_missing_is_named(tmp_path):
    backbone = make_model(FOUR["llama"]).backbone
    backbone.model.save_pretrained(tmp_path)
    weights = {name: w.detach().clone() for name, w in backbone.model.named_parameters()}
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config = read_config(str(tmp_path))
    load_stage(str(tmp_path), LayerRange(0, 2, LAYERS), config, dtype=torch.float64)
    with pytest.raises(BackboneError, match=r"lack the weight model.layers.2.mlp.up_proj.weight, of layers 2 to 3"):
        load_stage(str(tmp_path), LayerRange(2, 4, LAYERS), read_config(str(tmp_path)), dtype=torch.float64)


def test_a_stranger_is_not_cut():
    backbone = make_model(FOUR["stablelm"]).backbone
    with pytest.raises(
        BackboneError, match=r"stablelm cannot be cut into pipeline stages: backbones/families\.py does not list it"
    ):
        trim_to_stage(backbone, LayerRange(0, 2, LAYERS))


def test_width_is_that_of_the_embeddings():
    for config in KINDS.values():
        values = dict(config)
        assert embedding_width(read_config(values)) == make_model(config).backbone.dim
    assert embedding_width(read_config(dict(LLAMA))) == 16
