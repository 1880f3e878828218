"""Convert LoRA runs: backbone weights come from model.source, adapters are merged or written alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_convert_run import by_trainer, by_transformers, convert
from tiny_recipe import VOCABULARY, make_materials, train, write_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from hmt_ds.config.load import load_recipe
from hmt_ds.training.source_weights import with_source_weights

LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
GPT2 = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


def make_run(folder: Path, backbone: dict[str, Any], mode: str) -> Path:
    """A short run on a stored backbone with tied embeddings."""
    make_materials(folder)
    config = AutoConfig.for_model(**backbone)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    ids = torch.randint(3, VOCABULARY, (2, 104), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids, "labels": ids.clone()}, folder / "ids.safetensors")
    values = yaml.safe_load(write_recipe(folder, 2).read_text())
    values["model"] |= {"source": str(folder / "base"), "train": mode, "lora": {"rank": 4, "alpha": 12}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    options = ("--training.steps", "3", "--optimizer.lr", "0.02")
    code, printed = train(folder / "recipe.yaml", folder / "run", *options)
    assert code == 0, printed
    return folder / "run"


@pytest.mark.parametrize("backbone", [LLAMA, pytest.param(GPT2, marks=pytest.mark.slow)], ids=["llama", "gpt2"])
def test_lora(tmp_path, monkeypatch, backbone):
    """Linear layers, and GPT-2's transposed ones."""
    run = make_run(tmp_path, backbone, "lora")
    code, printed = convert(run, tmp_path / "new")
    assert code == 2 and "needs --merge" in printed, printed
    assert convert(run, tmp_path / "hf", "--merge")[0] == 0
    expected, found = by_trainer(tmp_path, run), by_transformers(tmp_path, tmp_path / "hf")
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-5)
    assert torch.equal(found["generated"][:, 104:], expected["generated"])

    # a run that starts from this one gets the same weights, with its adapters merged
    monkeypatch.setenv("LOCAL_RANK", "0")
    words = ["--model.source", str(run), "--training.output", str(tmp_path / "second")]
    source = Path(str(with_source_weights(load_recipe(run / "recipe.yaml", words)).model.source))
    one, other = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", source))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    assert convert(run, tmp_path / "adapter", "--what", "adapter")[0] == 0
    assert convert(run, tmp_path / "backbone", "--what", "backbone", "--merge")[0] == 0
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone").eval()
    ids = load_file(tmp_path / "ids.safetensors")["input_ids"][:, :30]
    plain = base.eval()(ids).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
    torch.testing.assert_close(adapted, merged(ids).logits, rtol=0, atol=1e-5)
    assert (adapted - plain).abs().max() > 1e-2
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 4


@pytest.mark.slow
def test_frozen(tmp_path):
    run = make_run(tmp_path, LLAMA, "frozen")
    assert convert(run, tmp_path / "hf")[0] == 0
    expected, found = by_trainer(tmp_path, run), by_transformers(tmp_path, tmp_path / "hf")
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-6)
    assert torch.equal(found["generated"][:, 104:], expected["generated"])
    # a random backbone that was not trained is in no file
    recipe = run / "recipe.yaml"
    values = yaml.safe_load(recipe.read_text())
    values["model"]["source"] = LLAMA
    recipe.write_text(yaml.safe_dump(values))
    code, printed = convert(run, tmp_path / "new")
    assert code == 2 and "no file has its weights" in printed, printed
    assert convert(run, tmp_path / "new", "--what", "memory")[0] == 0
    assert len(load_file(tmp_path / "new/memory.safetensors")) == 4
