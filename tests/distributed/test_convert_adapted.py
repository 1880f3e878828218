"""Convert runs of the adapted interface: logits and continuations of the folder's own code, and of a run from it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_convert_run import by_ours, by_trainer, by_transformers, convert
from tiny_recipe import VOCABULARY, make_materials, train, write_recipe

HMT = {"mode": "hmt", "recalled_memories": 2, "memory_tokens": 2}
MODULES = {
    "hmt": ["initial_prompt", "memory_embedding", "recall", "sink", "summary_prompt", "write_prompt"],
    "rmt": ["initial_prompt", "memory_embedding", "sink", "write_prompt"],
    "backbone": ["sink"],
}


def write_run(folder: Path, memory: dict[str, object]) -> Path:
    """A recipe, materials and a document of six and a half segments."""
    make_materials(folder)
    ids = torch.randint(3, VOCABULARY, (2, 104), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids, "labels": ids.clone()}, folder / "ids.safetensors")
    recipe = write_recipe(folder, 3)
    values = yaml.safe_load(recipe.read_text())
    values["memory"] |= {"interface": "adapted"} | memory
    recipe.write_text(yaml.safe_dump(values))
    return recipe


@pytest.mark.parametrize(
    "memory",
    [
        HMT,
        pytest.param({"mode": "rmt", "last_memories": 3}, marks=pytest.mark.slow),
        pytest.param({"mode": "backbone"}, marks=pytest.mark.slow),
    ],
    ids=lambda memory: memory["mode"],
)
def test_the_folder_is_the_run(tmp_path, memory):
    recipe = write_run(tmp_path, memory)
    code, printed = train(recipe, tmp_path / "run", "--training.steps", "3", "--optimizer.lr", "0.05")
    assert code == 0, printed
    code, printed = convert(tmp_path / "run", tmp_path / "hf")
    assert code == 0 and "written and verified" in printed, printed
    names = {name.split(".")[1] for name in load_file(tmp_path / "hf/model.safetensors")} - {"backbone"}
    assert sorted(names) == MODULES[memory["mode"]]

    expected, found = by_trainer(tmp_path, tmp_path / "run"), by_transformers(tmp_path, tmp_path / "hf")
    ours, length = by_ours(tmp_path, tmp_path / "hf"), 104
    for other in (found, ours):
        torch.testing.assert_close(other["logits"], expected["logits"], rtol=0, atol=1e-6)
    assert torch.equal(found["generated"][:, length:], expected["generated"])
    assert torch.equal(ours["generated"], expected["generated"])
    assert expected["logits"].std() > 0.1

    values = yaml.safe_load(recipe.read_text())
    values["model"] = {"source": str(tmp_path / "hf"), "precision": "fp32"}
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump(values))
    torch.testing.assert_close(by_trainer(tmp_path, second)["logits"], expected["logits"], rtol=0, atol=1e-6)


def test_a_folder_without_the_key_means_paper(tmp_path):
    """Loaded as such, and refused as the source of an adapted run."""
    recipe = write_run(tmp_path, {"interface": "paper"})
    assert train(recipe, tmp_path / "run", "--training.steps", "1", ranks=1)[0] == 0
    assert convert(tmp_path / "run", tmp_path / "hf")[0] == 0
    before = by_ours(tmp_path, tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    config = json.loads(file.read_text())
    for key in ("interface", "last_memories", "recalled_memories", "recall_loss"):
        del config["memory"][key]
    file.write_text(json.dumps(config))
    after = by_ours(tmp_path, tmp_path / "hf")
    assert all(torch.equal(after[key], value) for key, value in before.items())

    words = ["--model.source", str(tmp_path / "hf"), "--model.tokenizer", "null", "--memory.interface", "adapted"]
    code, printed = train(recipe, tmp_path / "second", *words, ranks=1)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1, printed
    assert "memory.interface is adapted, but model.source was trained with paper" in errors[0], printed
    assert "Traceback" not in printed and not (tmp_path / "second").exists(), printed
