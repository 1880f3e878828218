"""Configurations and files of models that cannot be used: one line before a run, never a traceback in its ranks."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LLAMA
from transformers import AutoConfig, AutoModelForCausalLM

from hmt_ds.backbones import BackboneError, LoraSettings, check_adapters, check_backbone, check_weights, read_config
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.weights import weight_files
from hmt_ds.data import DataError, load_tokenizer

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "pad id": ({"pad_token_id": LLAMA["vocab_size"]}, "Padding_idx must be within num_embeddings"),
    "rope type": ({"rope_scaling": {"type": "su", "factor": 2.0}}, "'su' is unknown to transformers"),
    "rope theta": ({"rope_theta": "10000"}, "unsupported operand"),
    "rope factor": ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    "activation": ({"hidden_act": "gelux"}, "'gelux' is unknown to transformers"),
    "dtype": ({"dtype": "float99"}, "no attribute 'float99'"),
    "key and value heads": ({"num_key_value_heads": 0}, "num_key_value_heads is 0: must be at least 1"),
    "layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0: must be at least 1"),
    "head": ({"head_dim": 0}, "0.0 cannot be raised"),
    "attention": ({"_attn_implementation": "flashx"}, "flashx"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a whole model."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    values = dict(LLAMA)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def check(source: Any) -> str:
    """Check a model as before a run; return the problem."""
    with pytest.raises(BackboneError) as error:
        check_backbone(read_config(source))
        check_weights(source)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_cannot_be_built(folder, name):
    """In a folder and in a recipe."""
    changes, said = CONFIGS[name]
    values = json.loads((folder / "config.json").read_text())
    if "rope" in name:
        values.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(values | changes))
    assert said in check(str(folder))
    assert said in check(LLAMA | changes)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\0", "[" * 100_000])
def test_a_damaged_configuration(folder, text):
    (folder / "config.json").write_text(text)
    assert check(str(folder)).startswith(f"model '{folder}': ")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": null}}'])
def test_a_damaged_index(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    assert check(str(folder)).startswith(f"model '{folder}': ")
    with pytest.raises(ConversionError, match=r"model.safetensors.index.json is damaged: "):
        weight_files(folder)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\xff" * 8 + b[8:]])
def test_damaged_weights(folder, damage):
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert check(str(folder)).startswith(f"model '{folder}': ")


class Hostile:
    """An object whose pickle runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code_ran",)


def test_a_pickle_with_code(folder, monkeypatch):
    """torch's own message recommends to switch the protection off."""
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"x": Hostile()}, folder / "pytorch_model.bin")
    said = check(str(folder))
    assert "its .bin file holds Python objects" in said and "weights_only" not in said
    assert not (folder / "code_ran").exists()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
def test_adapters_on_tied_weights(layer):
    """They could be trained, but not merged."""
    lora = LoraSettings(target_modules=[layer, "q_proj"])
    check_adapters(read_config(LLAMA | {"tie_word_embeddings": False}), lora)
    with pytest.raises(BackboneError, match=rf"^target_modules has \S*{layer}, whose weight is that of"):
        check_adapters(read_config(LLAMA | {"tie_word_embeddings": True}), lora)


@pytest.mark.parametrize("text", ["", "[]", "5", "{"])
def test_a_damaged_tokenizer(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"^cannot load a tokenizer from [^\n]+$"):
        load_tokenizer(str(tmp_path))
