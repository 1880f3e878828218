"""Values in a recipe: numbers, text that looks like another type, missing sections, and files beside the recipe."""

from pathlib import Path
from typing import Any

import pytest

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import find_file, load_recipe
from hmt_ds.config.recipe_yaml import read_yaml, write_yaml

PROJECT = Path(__file__).resolve().parents[2]
NOVEL = PROJECT / "launch" / "recipes" / "novel.yaml"


def write_recipe(file: Path, **sections: Any) -> Path:
    """Write the recipe of the novel with some sections replaced by YAML text."""
    values = read_yaml(NOVEL.read_text())
    lines = [f"{name}: {text}" for name, text in sections.items()]
    file.parent.mkdir(exist_ok=True)
    file.write_text(write_yaml({k: v for k, v in values.items() if k not in sections}) + "\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 0.0001),
        ("1E5", 100000.0),
        ("+2.e3", 2000.0),
        ("-.5e+1", -5.0),
        ("1.5e-3", 0.0015),
        ("{a: 1e-4, b: [2e0]}", {"a": 0.0001, "b": [2.0]}),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("x1e4", "x1e4"),
        ("1e4x", "1e4x"),
        ("3", 3),
        ("2024-05-01", "2024-05-01"),
        ("2024-05-01 10:20:30", "2024-05-01 10:20:30"),
        ("{a: 2024-05-01}", {"a": "2024-05-01"}),
        ("off", False),
        ("", None),
    ],
)
def test_read_yaml(text, expected):
    assert read_yaml(text) == expected and type(read_yaml(text)) is type(expected)


def test_numbers_without_a_dot_in_a_recipe(tmp_path):
    """Numbers such as 1e-4 are numbers, also for keys of any type, where only the YAML loader decides."""
    file = write_recipe(
        tmp_path / "recipe.yaml", optimizer="{lr: 1e-4, params: {eps: 1e-6}}", schedule="{name: StepLR}"
    )
    recipe = load_recipe(file, ["--optimizer.params.x", "2e-3", "--schedule.params", "{y: {z: 3e1}}"])
    assert recipe.optimizer.lr == 0.0001 and recipe.optimizer.params == {"eps": 0.000001, "x": 0.002}
    assert recipe.schedule.params == {"y": {"z": 30.0}}


@pytest.mark.parametrize(
    "value",
    [
        *("1e-4", 1e-4, "-.5E3", 1e-05, 1e300, "2024-05-01", "off", False, "null", None, "3", 3, "", "a: b", "1.5"),
        *("010", "09", "1:30", "0_1"),
    ],
)
def test_written_values_read_back_equal(value):
    """Text stays text and numbers stay numbers, in keys too."""
    values = {"b": value, "a": [value, {"c": value}], value: 1}
    found = read_yaml(write_yaml(values))
    assert found == values and list(found) == list(values)
    assert [type(one) for one in (found["b"], *found["a"])] == [type(value), type(value), dict]
    assert type(list(found)[2]) is type(value)


@pytest.mark.parametrize(
    ("words", "section", "key", "expected"),
    [
        (["--logging.wandb", "off"], "logging", "wandb", "off"),
        (["--logging.wandb=offline"], "logging", "wandb", "offline"),
        (["--data.train.name", "2024-05-01"], "data", "train.name", "2024-05-01"),
        (["--data.validation.source", "x"], "data", "validation.source", "x"),
        (["--checkpoint.every", "7"], "checkpoint", "every", 7),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_null_sections_and_text_that_looks_like_another_type(tmp_path, words, section, key, expected):
    file = write_recipe(tmp_path / "recipe.yaml", data="{train: {source: t}, validation: null}", checkpoint="null")
    words = words if section == "checkpoint" else [*words, "--checkpoint.every", "3"]
    value = load_recipe(file, words).model_dump()[section]
    for part in key.split("."):
        value = value[part]
    assert value == expected


@pytest.mark.parametrize("text", ["off", "'off'", "offline"])
def test_wandb_in_a_recipe(tmp_path, text):
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", logging=f"{{wandb: {text}}}"))
    assert recipe.logging.wandb == text.strip("'")
    assert load_recipe(write_recipe(tmp_path / "again.yaml", logging=str(recipe.logging.model_dump(mode="json"))))


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("compute.summary_batch", "x", ["must be 'auto' or a whole number, got 'x'"]),
        ("compute.summary_batch", "0", ["must be 'auto' or greater than 0, got 0"]),
        ("pipeline.layers", "x", ["must be 'auto' or 'time' or a list, got 'x'"]),
        ("pipeline.layers", "[1, x]", ["must be 'auto' or 'time' or a whole number, got [1, 'x']"]),
        ("model.source", "5", ["must be text or a mapping of keys to values, got 5"]),
        ("model.lora.target_modules", "5", ["must be text or a list, got 5"]),
        ("logging.wandb", "true", ["must be 'off', 'offline' or 'online', got True"]),
    ],
)
def test_a_key_with_several_types_has_one_line(key, value, parts):
    with pytest.raises(ConfigError) as error:
        load_recipe(NOVEL, [f"--{key}", value])
    (line,) = error.value.problems
    assert line.startswith(f"{key}: {parts[0]}") and line.endswith(parts[-1])


def test_a_deepspeed_file_beside_the_recipe_is_found_from_anywhere(tmp_path, monkeypatch):
    """The file is also found through the run's recipe.yaml, which is in another folder."""
    write_recipe(tmp_path / "sub" / "recipe.yaml", deepspeed="own.json")
    (tmp_path / "sub" / "own.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("sub/recipe.yaml")
    run = tmp_path / "run" / "recipe.yaml"
    run.parent.mkdir()
    run.write_text(write_yaml(recipe.model_dump(mode="json")))
    monkeypatch.chdir(run.parent)
    for one, file in ((recipe, Path("recipe.yaml")), (load_recipe("recipe.yaml"), Path("recipe.yaml"))):
        assert find_file(one.deepspeed, file) == tmp_path / "sub" / "own.json"


@pytest.mark.parametrize("name", ["ds_configs/zero3.json", "nowhere.json"])
def test_other_deepspeed_files_keep_their_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(write_recipe(tmp_path / "recipe.yaml", deepspeed=name)).deepspeed == name
