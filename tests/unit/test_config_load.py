"""Loading a recipe: typed overrides, one line per problem, every key listed, recipes that read back equal."""

from pathlib import Path

import pytest

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import apply_overrides, find_file, load_recipe
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.recipe_yaml import write_yaml
from hmt_ds.config.sections import keys

PROJECT = Path(__file__).resolve().parents[2]
NOVEL = PROJECT / "launch" / "recipes" / "novel.yaml"
RECIPES = sorted(NOVEL.parent.glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "path", "expected"),
    [
        (["--training.steps", "7"], "training.steps", 7),
        (["--training.steps=7"], "training.steps", 7),
        (["--optimizer.lr", "1e-3"], "optimizer.lr", 0.001),
        (["--optimizer.memory_lr", "null"], "optimizer.memory_lr", None),
        (["--logging.csv", "true"], "logging.csv", True),
        (["--evaluation.segments_read", "[1, 3]"], "evaluation.segments_read", [1, 3]),
        (["--optimizer.params", "{eps: 1.0e-6}"], "optimizer.params", {"eps": 1e-6}),
        (["--optimizer.params.eps", "1.0e-6"], "optimizer.params", {"betas": [0.9, 0.95], "eps": 1e-6}),
        (["--model.source", "some/folder"], "model.source", "some/folder"),
        (["--model.lora.target_modules", "[q_proj, v_proj]"], "model.lora.target_modules", ["q_proj", "v_proj"]),
        (["--training.output", "a=b"], "training.output", "a=b"),
        (["--training.steps", "7", "--training.steps", "8"], "training.steps", 8),
    ],
)
def test_overrides_are_typed(words, path, expected):
    section, key = path.split(".", 1)
    value = load_recipe(NOVEL, words).model_dump()[section]
    for part in key.split("."):
        value = value[part]
    assert value == expected and type(value) is type(expected)


def test_overrides_change_nothing_else():
    plain, changed = (
        load_recipe(NOVEL).model_dump(),
        load_recipe(NOVEL, ["--training.seed", "9"]).model_dump(),
    )
    assert changed["training"].pop("seed") == 9 and plain["training"].pop("seed") != 9
    assert changed == plain


def test_override_of_a_key_below_a_value():
    values = {"deepspeed": "file.json"}
    assert apply_overrides(values, ["--deepspeed.stage", "3"]) == [
        "deepspeed.stage: deepspeed is a plain value, 'file.json', without keys below it: override deepspeed itself"
    ]
    assert values == {"deepspeed": "file.json"}


def test_every_problem_is_reported():
    with pytest.raises(ConfigError) as error:
        load_recipe(NOVEL, ["--training.steps", "0", "--optimizer.lr", "-1", "--data.wrokers", "2", "x"])
    assert len(error.value.problems) == 4
    assert "data.wrokers: unknown key; did you mean data.workers?" in error.value.problems


def test_every_key_is_listed_with_its_meaning():
    listed = dict(keys(Recipe))

    def leaves(values: dict, prefix: str = "") -> set[str]:
        found = set()
        for name, value in values.items():
            whole = prefix + name
            inner = isinstance(value, dict) and any(key.startswith(whole + ".") for key in listed)
            found |= leaves(value, whole + ".") if inner else {whole}
        return found

    assert leaves(load_recipe(NOVEL).model_dump()) <= set(listed)
    assert {"memory.segment_length", "model.lora.rank", "data.validation.separator"} <= set(listed)
    for name in ("memory.segment_length", "deepspeed", "training.bptt_depth", "data.train.separator"):
        assert listed[name].description, name


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_written_recipe_reads_back_equal(file, tmp_path):
    """A recipe that the trainer has written to a run's recipe.yaml reads back equal."""
    recipe = load_recipe(file, ["--optimizer.lr", "1.2345678901234567e-4", "--checkpoint.every", "3"])
    saved = tmp_path / "recipe.yaml"
    saved.write_text(write_yaml(recipe.model_dump(mode="json")))
    assert load_recipe(saved) == recipe


def test_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(NOVEL).training.steps = 3


def test_files_are_found_beside_the_recipe_and_in_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.json").write_text("{}")
    assert find_file("own.json", tmp_path / "sub" / "recipe.yaml") == tmp_path / "sub" / "own.json"
    assert find_file("ds_configs/zero2.json", "recipe.yaml") == PROJECT / "ds_configs" / "zero2.json"
    assert find_file("nowhere.json", "recipe.yaml") is None
