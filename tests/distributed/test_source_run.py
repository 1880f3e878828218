"""A run in `model.source`: training starts from its weights, in every layout, and does not depend on it any longer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_convert_run import by_trainer, convert
from tiny_recipe import VOCABULARY, make_materials, run_module, train, write_recipe

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.conversion.weights import Weights, checkpoint_weights
from hmt_ds.preflight.source_run import source_run, with_source_of_run
from hmt_ds.training.source_weights import with_source_weights

RMT = ("--memory.mode", "rmt")
# at a rate of nearly nothing the checkpoint holds what the run began with
ONE_STEP = ("--training.steps", "1", "--optimizer.lr", "1e-30")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of three steps in mode rmt, on two ranks at ZeRO-3."""
    folder = tmp_path_factory.mktemp("source_run")
    make_materials(folder)
    words = ("--training.steps", "3", "--checkpoint.every", "2", "--optimizer.lr", "0.05")
    code, printed = train(write_recipe(folder), folder / "first", *RMT, *words)
    assert code == 0, printed
    return folder


def weights_of(run: Path, step: int) -> Weights:
    return checkpoint_weights(run / "checkpoints" / f"step_{step:06d}")


def assert_equal(one: Weights, other: Weights) -> None:
    assert one.shapes == other.shapes and len(one.shapes) > 20
    for name in one.shapes:
        assert torch.equal(one.read(name), other.read(name)), name


def second_of(folder: Path, output: Path, *words: str) -> tuple[Path, list[str]]:
    """The recipe file of a second run, and its overrides."""
    return write_recipe(folder, 0), ["--model.source", str(folder / "first"), "--training.output", str(output), *words]


@pytest.mark.parametrize(
    ("stage", "words"), [(0, ()), (3, ()), (1, ("--pipeline.stages", "2"))], ids=["zero0", "zero3", "pipeline"]
)
def test_it_starts_from_the_last_weights(folder, stage, words):
    """The newest checkpoint's, bit for bit."""
    second = folder / f"second{stage}"
    source = ("--model.source", str(folder / "first"))
    code, printed = train(write_recipe(folder, stage), second, *source, *RMT, *ONE_STEP, *words)
    assert code == 0 and "step_000003, as " in printed, printed
    assert_equal(weights_of(second, 1), weights_of(folder / "first", 3))


def test_the_next_stage_by_command_then_moved(folder, tmp_path):
    """From rmt to hmt, from a named checkpoint; evaluated and converted where the first run is gone."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(folder / "first", first)
    recipe, _ = second_of(folder, second)
    source = ("--model.source", str(first / "checkpoints" / "step_000002"))
    code, printed = train(recipe, second, *source, *ONE_STEP, ranks=1)
    assert code == 0, printed
    began, found = weights_of(first, 2), weights_of(second, 1)
    assert {name for name in found.shapes if name not in began.shapes} == {
        *("recall.query.weight", "recall.key.weight", "summary_prompt.embeddings.weight")
    }
    assert all(torch.equal(found.read(name), began.read(name)) for name in began.shapes)

    shutil.rmtree(first)
    moved = second.rename(tmp_path / "moved")
    text = yaml.safe_dump({"source": str(folder / "text.txt"), "separator": "^Chapter"})
    code, printed = run_module("hmt_ds.evaluate", str(moved), "--data.validation", text, ranks=1)
    assert code == 0 and "step_000001_" in printed, printed
    code, printed = convert(moved, tmp_path / "hf")
    assert code == 0 and "written and verified" in printed, printed


def test_logits_of_a_recipe_that_names_the_run(folder, monkeypatch):
    """They are the run's own."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    file, words = second_of(folder, folder / "logits", *RMT)
    ids = torch.randint(3, VOCABULARY, (2, 104), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, folder / "ids.safetensors")
    recipe = with_source_weights(load_recipe(file, words))
    expected = by_trainer(folder, folder / "first")
    found = by_trainer(folder, file, *RMT, "--model.source", str(recipe.model.source))
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-6)
    assert expected["logits"].std() > 0.1


def test_a_resumed_run_stays_with_its_first_weights(folder, tmp_path, monkeypatch):
    """Though its source has been trained further; a new run takes the new weights."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    source = tmp_path / "first"
    shutil.copytree(folder / "first", source)
    newest = source / "checkpoints" / "step_000003"
    newest.rename(tmp_path / "later")
    file, words = second_of(folder, tmp_path / "second", *RMT, "--model.source", str(source))
    before = with_source_weights(load_recipe(file, words))
    assert Path(str(before.model.source)).name.startswith("first-step_000002-")
    (tmp_path / "later").rename(newest)
    resumed = with_source_weights(load_recipe(file, [*words, "--checkpoint.resume", "auto"]))
    assert resumed == before.model_copy(update={"checkpoint": resumed.checkpoint})
    assert "first-step_000003-" in str(with_source_weights(load_recipe(file, words)).model.source)


def test_what_cannot_be_a_start_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    file, words = second_of(folder, tmp_path / "second", *RMT)

    def problems(*more: str) -> list[str]:
        return with_source_of_run(load_recipe(file, [*words, *more]))[1]

    assert problems() == []
    (line,) = problems("--memory.memory_tokens", "2")
    assert line == "memory.memory_tokens is 2, but model.source was trained with 1: set it to 1"
    (line,) = problems("--memory.interface", "adapted")
    assert line == "memory.interface is adapted, but model.source was trained with paper: set it to paper"
    empty, frozen = tmp_path / "empty", tmp_path / "frozen"
    for run in (empty, frozen):
        shutil.copytree(folder / "first", run, ignore=shutil.ignore_patterns("fragments*"))
    shutil.rmtree(empty / "checkpoints")
    (line,) = problems("--model.source", str(empty))
    assert line.startswith(f"model.source: the run {empty} has no checkpoint yet: train until one is saved")
    recipe = yaml.safe_load((frozen / "recipe.yaml").read_text())
    recipe["model"]["train"] = "frozen"
    (frozen / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (line,) = problems("--model.source", str(frozen))
    assert "had model.train frozen and random weights" in line
    for source, said in ((frozen, "has no intact checkpoint"), (frozen / "checkpoints/step_000002", "is damaged: ")):
        with pytest.raises(ConfigError, match=said) as error:
            with_source_weights(load_recipe(file, [*words, "--model.source", str(source)]))
        assert len(error.value.problems) == 1
    (frozen / "checkpoints/step_000002/manifest.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read"):
        with_source_weights(load_recipe(file, [*words, "--model.source", str(frozen / "checkpoints/step_000002")]))
    assert not (tmp_path / "second").exists()


def test_other_sources_are_no_runs(folder, tmp_path):
    assert source_run({"model_type": "gpt2"}) is source_run("gpt2") is source_run(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("{}")
    assert source_run(str(tmp_path)) is None
    found = source_run(str(folder / "first/checkpoints/step_000002"))
    assert found is not None and found.recipe_file == (folder / "first/recipe.yaml").resolve()
