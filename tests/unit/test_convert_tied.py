"""Tied weights: both stored copies must be equal, and an adapter on one of them cannot be merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LLAMA, make_settings
from transformers import AutoModelForCausalLM

from hmt_ds.backbones import LoraSettings, build_model, read_config, select_trainable
from hmt_ds.config.recipe import Recipe
from hmt_ds.conversion.adapters import ADAPTER
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.from_run import RunWeights
from hmt_ds.conversion.skeleton import match_weights, skeleton
from hmt_ds.conversion.weights import tensor_weights
from hmt_ds.memory import HMT, MemorySettings

TIED = LLAMA | {"tie_word_embeddings": True}
HEAD, EMBEDDING = "backbone.model.lm_head.weight", "backbone.model.model.embed_tokens.weight"
BACKBONE = make_settings(mode="backbone")


def stored(head: str) -> dict[str, torch.Tensor]:
    """Return a file's weights, with a head that is equal, absent or another."""
    torch.manual_seed(0)
    model = HMT(build_model(TIED, dtype=torch.float32), BACKBONE)
    found = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert {HEAD, EMBEDDING} <= found.keys()
    if head == "absent":
        del found[HEAD]
    if head == "another":
        found[HEAD][0, 0] += 1
    return found


@pytest.mark.parametrize("head", ["equal", "absent"])
def test_one_weight(head):
    given = stored(head)
    found = match_weights(tensor_weights(given), skeleton(read_config(TIED), BACKBONE), "the file")
    assert EMBEDDING in found.shapes and HEAD not in found.shapes
    assert torch.equal(found.read(EMBEDDING), given[EMBEDDING])


def test_two_weights_are_refused():
    """Tied weights that differ are refused, because one would be lost; untied ones are both kept."""
    given = stored("another")
    with pytest.raises(ConversionError) as error:
        match_weights(tensor_weights(given), skeleton(read_config(TIED), BACKBONE), "the file")
    assert str(error.value) == (
        f"the file: {HEAD} and {EMBEDDING} differ, but the config ties them: set tie_word_embeddings to false in the "
        "config.json of the backbone"
    )
    found = match_weights(tensor_weights(given), skeleton(read_config(LLAMA), BACKBONE), "the file")
    assert all(torch.equal(found.read(name), given[name]) for name in (HEAD, EMBEDDING))


def lora_run(folder: Path, config: dict[str, Any], targets: list[str]) -> RunWeights:
    """Make a LoRA run whose adapters are not zero."""
    AutoModelForCausalLM.from_config(read_config(config)).save_pretrained(folder)
    lora = {"rank": 2, "alpha": 2, "target_modules": targets}
    values: dict[str, Any] = {
        "model": {"source": str(folder), "train": "lora", "lora": lora},
        "memory": {"segment_length": BACKBONE.segment_length, "mode": "backbone"},
        "data": {"train": {"source": "text.txt"}},
        "training": {"output": "run", "steps": 1},
        "optimizer": {"lr": 1e-3},
        "deepspeed": "zero1.json",
    }
    backbone = build_model(str(folder), dtype=torch.float32)
    select_trainable(backbone, "lora", LoraSettings(**lora))
    settings = MemorySettings(BACKBONE.segment_length, mode="backbone")
    weights = {name: torch.ones_like(p) for name, p in HMT(backbone, settings).named_parameters() if ADAPTER in name}
    return RunWeights(Recipe.model_validate(values), tensor_weights(weights), read_config(config), settings)


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("what", ["model", "backbone"])
def test_an_adapter_on_tied_weights_is_not_merged(tmp_path, layer, what):
    """An adapter on only the head or the embedding is refused: merged, it would change both or be lost."""
    name = {"lm_head": HEAD, "embed_tokens": EMBEDDING}[layer]
    run = lora_run(tmp_path, TIED, ["q_proj", layer])
    with pytest.raises(ConversionError) as error:
        run.part(what)
    said = f"{name} has an adapter and is tied to another weight, so the adapter cannot be merged"
    assert str(error.value) == f"{said}: write a run's adapter with --what adapter"
    assert any(f"{layer}.lora_" in part for part in run.part("adapter").shapes)  # written separately it is possible


@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["untied", "tied"])
def test_other_adapters_are_merged(tmp_path, config):
    """Two ranks of ones, scaled by alpha / rank = 1, add 2 to each number of the layer's weight."""
    layer = "lm_head" if config is LLAMA else "q_proj"
    found = lora_run(tmp_path, config, [layer]).part("model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for name in found.shapes:
        expected = plain[name.removeprefix("backbone.model.")] + (2 if f"{layer}." in name else 0)
        torch.testing.assert_close(found.read(name), expected)
