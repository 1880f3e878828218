"""Attributes that libraries read from a converted folder's model, and accelerate's offloading, against plain Llama."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, infer_auto_device_map
from tiny import GPT2, LLAMA, VOCABULARY
from tiny_folder import HMTForCausalLM, load_tiny, write_tiny
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, dynamic_module_utils

import hmt_ds
from hmt_ds.backbones import build_model, check_weights, read_config
from hmt_ds.conversion.modeling_hmt import HMTConfig
from hmt_ds.conversion.weights import weight_files

READ = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a converted folder."""
    return write_tiny(tmp_path / "hf", LLAMA | {"pad_token_id": 2})


@pytest.fixture
def plain(tmp_path) -> Path:
    """Write the folder of a plain Llama."""
    build_model(LLAMA, dtype=torch.float32).model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def load(folder: Path, **options: object) -> PreTrainedModel:
    """Load a converted or a plain folder."""
    if "hmt" in json.loads((folder / "config.json").read_text())["model_type"]:
        return load_tiny(folder, **options)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **options).eval()


def test_the_configuration_has_the_backbones_sizes(folder, tmp_path):
    model = load_tiny(folder)
    for config, backbone in ((model.config, LLAMA), (HMTConfig(GPT2, {"segment_length": 6}), GPT2)):
        expected = read_config(backbone)
        assert {name: getattr(config, name) for name in READ} == {name: getattr(expected, name) for name in READ}
    assert model.config.pad_token_id == 2 and not hasattr(HMTConfig(), "vocab_size")
    with pytest.raises(AttributeError, match="'HMTConfig' has no attribute 'none_such'"):
        _ = model.config.none_such
    # what is set counts wherever it is read, and nothing is stored twice
    model.config.pad_token_id = 3
    assert model.hmt.backbone.model.config.pad_token_id == 3
    model.resize_token_embeddings(VOCABULARY + 4)
    assert model.config.vocab_size == model.hmt.backbone.vocabulary == VOCABULARY + 4
    model.save_pretrained(tmp_path / "again")
    stored = json.loads((tmp_path / "again/config.json").read_text())
    assert stored["backbone"]["vocab_size"] == VOCABULARY + 4 and stored["backbone"]["pad_token_id"] == 3
    assert not stored.keys() & {*READ, "pad_token_id"}
    ids = torch.randint(3, VOCABULARY, (2, 15))
    torch.testing.assert_close(load_tiny(tmp_path / "again")(ids).logits, model(ids).logits)


def test_auto_model_is_refused_in_words(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    with pytest.raises(ValueError, match="has no model without a head: load it with AutoModelForCausalLM"):
        AutoModel.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("kind", ["folder", "plain"])
def test_cpu_offload(kind, request):
    """Weights come in for each module's forward: the same logits."""
    model = load(request.getfixturevalue(kind))
    ids = torch.randint(3, VOCABULARY, (2, 15))
    expected = model(ids).logits
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("kind", ["folder", "plain"])
def test_a_map_of_two_parts(kind, request, tmp_path):
    """accelerate's own map keeps decoder layers whole, and gives the same logits with a part on the disk."""
    folder = request.getfixturevalue(kind)
    model = load(folder)
    ids = torch.randint(3, VOCABULARY, (2, 15))
    assert "LlamaDecoderLayer" in model._no_split_modules
    size = sum(p.nbytes for p in model.parameters())
    for share in (0.6, 0.75, 0.9):
        limits = {"cpu": int(size * share), "disk": 10**9}
        where = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=list(model._no_split_modules))
        assert set(where.values()) == {"cpu", "disk"} and not any(".layers.0." in name for name in where)
        parts = load(folder, device_map=where, offload_folder=str(tmp_path / "offload"))
        with torch.no_grad():
            torch.testing.assert_close(parts(ids).logits, model(ids).logits)


def forwards(*models: HMTForCausalLM) -> list[torch.Tensor]:
    """Return the logits of one document by each model."""
    ids = torch.randint(3, VOCABULARY, (1, 15))
    return [model(ids).logits for model in models]


def test_an_index_left_from_an_earlier_save(folder, tmp_path):
    """The single file counts: for transformers, for `load_pretrained`, for runs, and for another conversion."""
    load_tiny(folder, dtype=torch.float32).save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    stale = tmp_path / "shards"
    new = load_tiny(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(0.1)
    new.save_pretrained(tmp_path / "new")
    shutil.copy(tmp_path / "new/model.safetensors", stale)
    assert len(list(stale.glob("model-*"))) > 2 and (stale / "model.safetensors.index.json").exists()
    expected, by_transformers = forwards(new, load_tiny(stale, dtype=torch.float32))
    assert torch.equal(by_transformers, expected)
    ours = dict(hmt_ds.load_pretrained(stale).named_parameters())
    for name, parameter in new.named_parameters():
        assert torch.equal(ours[name.removeprefix("hmt.")], parameter), name
    assert [file.name for file in weight_files(stale)] == ["model.safetensors"]


def test_tied_weights_beside_a_stale_index(tmp_path):
    """The check of tied weights reads the file that is loaded."""
    tied = build_model(LLAMA | {"tie_word_embeddings": True}, dtype=torch.float32).model
    tied.save_pretrained(tmp_path, max_shard_size="2KB")
    tied.save_pretrained(tmp_path / "whole")
    for shard in tmp_path.glob("model-*"):
        shard.unlink()
    shutil.copy(tmp_path / "whole/model.safetensors", tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists() and check_weights(str(tmp_path)) == []
