"""Convert runs of two ranks at ZeRO-3, and use the folder with transformers alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import run_command
from ranks import cpu_environment, run_ranks
from safetensors.torch import load_file, save_file
from tiny_recipe import VOCABULARY, make_materials, train, write_recipe

import hmt_ds
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.memory import MemoryState, read_window, split_document

SHORT = ("--training.steps", "3", "--optimizer.lr", "0.05")
WITHOUT = str(Path(__file__).with_name("without_hmt_ds"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run, its converted folder, and a document of six and a half segments."""
    folder = tmp_path_factory.mktemp("convert")
    make_materials(folder)
    ids = torch.randint(3, VOCABULARY, (2, 104), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :30] = -100
    save_file({"input_ids": ids, "labels": labels}, folder / "ids.safetensors")
    assert train(write_recipe(folder), folder / "run", *SHORT)[0] == 0
    code, printed = convert(folder / "run", folder / "hf")
    assert code == 0 and "written and verified" in printed, printed
    return folder


def convert(source: Path, target: Path, *more: str) -> tuple[int, str]:
    """`hmt-ds convert`: its exit code, and all that it printed."""
    return run_command("convert", str(source), str(target), *more)


def by_trainer(folder: Path, run: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The results of the trainer's own model."""
    out = folder / f"{run.stem}-trainer.safetensors"
    stage_0 = ["--deepspeed", "ds_configs/zero0.json", *overrides]
    task = {"run": str(run), "ids": str(folder / "ids.safetensors"), "out": str(out), "overrides": stage_0}
    run_ranks("trainer_logits.py", task, ranks=1)
    return load_file(out)


def by_transformers(folder: Path, converted: Path) -> dict[str, torch.Tensor]:
    """The results of a Python without hmt_ds."""
    out = folder / f"{converted.name}-transformers.safetensors"
    script = Path(__file__).with_name("read_folder.py")
    environment = cpu_environment(PYTHONPATH=WITHOUT, HF_MODULES_CACHE=str(folder / "modules"))
    command = [sys.executable, str(script), str(converted), str(folder / "ids.safetensors"), str(out)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "False False" in done.stdout, done.stdout
    assert "newly initialized" not in done.stderr and "UNEXPECTED" not in done.stderr, done.stderr
    return load_file(out)


def by_ours(folder: Path, converted: Path) -> dict[str, Any]:
    """The results of hmt_ds.load_pretrained, without the code in the folder."""
    model = hmt_ds.load_pretrained(converted)
    ids, settings = load_file(folder / "ids.safetensors")["input_ids"], model.settings
    dim, device = model.backbone.dim, torch.device("cpu")
    state = MemoryState.empty(
        2, settings.memory_tokens, dim, settings.sensory_tokens, dtype=torch.float32, device=device
    )
    window = split_document(ids, settings.segment_length)
    with torch.no_grad():
        logits = [o.logits for o, _ in read_window(model, settings, window, state, with_logits=True)]
    return {
        "logits": torch.cat(logits, dim=1)[:, : ids.shape[1]],
        "generated": HMTForCausalLM.around(model).generate(ids, max_new_tokens=40)[:, ids.shape[1] :],
    }


def test_same_logits_and_continuation(folder):
    expected, found, ours = by_trainer(folder, folder / "run"), by_transformers(folder, folder / "hf"), None
    ours = by_ours(folder, folder / "hf")
    given = load_file(folder / "ids.safetensors")
    for other in (found, ours):
        torch.testing.assert_close(other["logits"], expected["logits"], rtol=0, atol=1e-6)
    assert torch.equal(found["generated"], torch.cat([given["input_ids"], expected["generated"]], dim=1))
    assert torch.equal(ours["generated"], expected["generated"])
    assert torch.equal(found["last"], found["logits"][:, -5:])
    loss = torch.nn.functional.cross_entropy(found["logits"][:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten())
    torch.testing.assert_close(found["loss"][0], loss)
    assert expected["logits"].std() > 0.1


def test_card(folder):
    """The model card describes the model and contains no local paths."""
    head, text = (folder / "hf/README.md").read_text().removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head) == {"library_name": "transformers", "tags": ["hmt", "long-context"]}
    assert "from `run/step_000003`" in text and "3 steps; loss" in text and str(folder) not in text
    recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["training"]["output"] == "run" and recipe["training"]["steps"] == 3


@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_begins_with_it(folder, stage):
    """A run that starts from the folder has the converted model's logits, memory modules included."""
    recipe = write_recipe(folder, stage)
    values = yaml.safe_load(recipe.read_text())
    values["model"]["source"] = str(folder / "hf")
    del values["model"]["tokenizer"]
    recipe = folder / f"second{stage}.yaml"
    recipe.write_text(yaml.safe_dump(values))
    if stage == 0:
        expected, found = load_file(folder / "hf-transformers.safetensors"), by_trainer(folder, recipe)
        torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-6)
        return
    # at a rate of nearly nothing the checkpoint of two ranks holds what they began with
    code, printed = train(recipe, folder / "second", "--training.steps", "1", "--optimizer.lr", "1e-30")
    assert code == 0 and "UNEXPECTED" not in printed, printed
    code, printed = convert(folder / "second", folder / "second-hf")
    assert code == 0, printed
    one, two = load_file(folder / "hf/model.safetensors"), load_file(folder / "second-hf/model.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_other_sizes_are_refused(folder):
    recipe = folder / "second0.yaml"
    code, printed = train(recipe, folder / "refused", "--memory.memory_tokens", "2", ranks=1)
    assert code == 2 and "memory_tokens is 2, but model.source was trained with 1: set it to 1" in printed, printed


def test_dry_run_and_bad_input(folder):
    before = sorted(folder.iterdir())
    code, printed = convert(folder / "run", folder / "new", "--dry-run")
    assert code == 0 and "would write" in printed and sorted(folder.iterdir()) == before, printed
    for source, target, more, said in (
        ("nowhere", "new", (), "no such file or folder"),
        ("run", "hf", (), "exists already"),
        ("run", "new", ("--what", "adapter"), "its model.train is whole"),
        ("run", "new", ("--merge",), "only possible with --what model or backbone, for a run with LoRA adapters"),
        (
            "run",
            "new",
            ("--memory.segment_length", "3"),
            "not allowed, because the source stores its own settings: remove the option",
        ),
        ("cache", "new", (), "name a run, a checkpoint"),
    ):
        code, printed = convert(folder / source, folder / target, *more)
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and said in errors[0] and "Traceback" not in printed, printed
    assert sorted(folder.iterdir()) == before
