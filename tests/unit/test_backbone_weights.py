"""A backbone's weights from a folder: missing, misshapen, unused and differing tied weights are reported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import LLAMA
from torch import Tensor

from hmt_ds.backbones import BackboneError, build_model, check_weights, read_config


def test_weights_from_a_folder(tmp_path):
    backbone = build_model(LLAMA, dtype=torch.float32)
    backbone.model.save_pretrained(tmp_path)
    loaded = build_model(str(tmp_path), dtype=torch.float32)
    for (name, saved), (_, read) in zip(backbone.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(saved, read), name
    assert check_weights(str(tmp_path)) == []


def test_weights_that_the_model_does_not_have_are_named(tmp_path):
    build_model(LLAMA | {"attention_bias": True}, dtype=torch.float32).model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"attention_bias": true', '"attention_bias": false'))
    (said,) = check_weights(str(tmp_path))
    name = "model.layers.0.self_attn.k_proj.bias"
    assert said.endswith(f"its files hold {name} (and 7 more), which LlamaForCausalLM does not use")


def test_quantized_weights_are_refused(tmp_path):
    build_model(LLAMA, dtype=torch.float32).model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(BackboneError, match=r"its weights are quantized \(fp8\), which cannot be trained here"):
        read_config(str(tmp_path))


def test_adapters_are_refused(tmp_path):
    build_model(LLAMA, dtype=torch.float32).model.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BackboneError, match="it holds a peft adapter: merge the adapter into its model"):
        read_config(str(tmp_path))


def save_bin(weights: dict[str, Tensor], file: Path) -> None:
    """Save with torch."""
    torch.save(weights, file.with_name("pytorch_model.bin"))


def save_old(weights: dict[str, Tensor], file: Path) -> None:
    """Save in torch's format before 1.6, which is not a zip file."""
    torch.save(weights, file.with_name("pytorch_model.bin"), _use_new_zipfile_serialization=False)


def save(weights: dict[str, Tensor], file: Path) -> None:
    """Save as transformers does."""
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("saved_by", [save, save_bin, save_old])
def test_weights_that_the_config_ties_are_one(tmp_path, saved_by):
    """Tied weights that differ in the files are refused: transformers would load both."""
    model = build_model(LLAMA | {"tie_word_embeddings": True, "vocab_size": 5000}, dtype=torch.float32).model
    model.save_pretrained(tmp_path)
    weights = load_file(file := tmp_path / "model.safetensors")
    file.unlink()
    head = weights["model.embed_tokens.weight"].clone()
    saved_by(weights | {"lm_head.weight": head}, file)
    assert check_weights(str(tmp_path)) == []
    head[-1, -1] += 1
    saved_by(weights | {"lm_head.weight": head}, file)
    with pytest.raises(
        BackboneError, match=r"lm_head.weight and model.embed_tokens.weight differ in its files, but its config ties"
    ):
        check_weights(str(tmp_path))


def without_one(file: Path) -> None:
    """Remove a weight."""
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save(weights, file)


def with_another(file: Path) -> None:
    """Give a weight another shape."""
    save(load_file(file) | {"model.norm.weight": torch.ones(3)}, file)


def cut_off(file: Path) -> None:
    """Truncate the file, as an interrupted download does."""
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_one, "its files lack the weight model.layers.1.mlp.up_proj.weight"),
        (with_another, "model.norm.weight has the shape [3] in its files, but [16] by its config.json"),
        (cut_off, "incomplete"),
        (Path.unlink, "no file named model.safetensors"),
    ],
)
def test_weights_that_are_missing_are_not_random_ones(tmp_path, damage, said):
    build_model(LLAMA, dtype=torch.float32).model.save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(BackboneError) as error:
        check_weights(str(tmp_path))
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises((BackboneError, OSError, SafetensorError)):
        build_model(str(tmp_path), dtype=torch.float32)
