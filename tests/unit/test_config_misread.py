"""Recipes that YAML or Python would misread silently: keys given twice, ambiguous numbers, paths."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hmt_ds import cli
from hmt_ds.benchmark.bench_options import BenchOptions
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.options import read_options
from hmt_ds.config.recipe_yaml import MisreadError, read_yaml
from hmt_ds.parallel.deepspeed_config.fill import DeepSpeedConfigError, read_ds_config

PROJECT = Path(__file__).resolve().parents[2]
NOVEL = PROJECT / "launch" / "recipes" / "novel.yaml"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3", ["line 3: a is given twice, first in line 1"]),
        ("a: {b: 1, b: 2}\na: {}", ["line 1: b is given twice, first in line 1", "line 2: a is given twice"]),
        ("a: 010", ["line 1: 010 is ambiguous"]),
        ("a:\n- -0_7\n- 09", ["line 2: -0_7 is ambiguous", "line 3: 09 is ambiguous"]),
        ("1:30", ["line 1: 1:30 is ambiguous"]),
        ("a: &x [*x]", ["line 1: nested more than 50 levels deep"]),
        (
            f"{{a: &a [{', '.join('0' * 50)}], b: &b [{', '.join(['*a'] * 50)}], c: [{', '.join(['*b'] * 50)}]}}",
            ["aliases (*) repeat values, which makes more than 100,000 of them"],
        ),
        ("[" * 60 + "]" * 60, ["line 1: nested more than 50 levels deep"]),
        ("&a [&b [1, 1, 1, 1], *b, *b, *b, *b]", []),
        ("a: 0\nb: 0.5\nc: '010'\nd: 0x1F\ne: 1:30x\nf: 10:80", []),
        ("a: &a {x: 1}\nb: {<<: *a, x: 2}", []),
    ],
)
def test_what_yaml_would_misread(text, lines):
    if not lines:
        read_yaml(text)
        return
    with pytest.raises(MisreadError) as error:
        read_yaml(text)
    assert len(error.value.problems) == len(lines)
    assert all(map(str.startswith, error.value.problems, lines)), error.value.problems


@pytest.mark.parametrize("text", ["!!int x", "!!bool x", "!!timestamp x", "9" * 5000, "[" * 5000, "a: \x00", "{[]: 1}"])
def test_what_is_no_yaml(text):
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)


def test_every_misread_value_of_a_recipe_is_reported(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(NOVEL.read_text() + "training: {steps: 1:30}\n")
    with pytest.raises(ConfigError) as error:
        load_recipe(file)
    assert [problem.partition(": line ")[0] for problem in error.value.problems] == [str(file)] * 2
    with pytest.raises(ConfigError) as error:
        load_recipe(NOVEL, ["--training.steps", "010", "--optimizer.params", "{a: 1, a: 2}"])
    assert [problem.split(" ")[:2] for problem in error.value.problems] == [
        ["training.steps:", "010"],
        ["optimizer.params:", "a"],
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.steps", "true"),
        ("optimizer.lr", "yes"),
        ("memory.recall_dim", "on"),
        ("pipeline.layers", "[true, 3]"),
        ("evaluation.segments_read", "[true]"),
        ("compute.summary_batch", "true"),
        ("model.lora.rank", "true"),
    ],
)
def test_booleans_are_no_numbers(key, value):
    with pytest.raises(ConfigError) as error:
        load_recipe(NOVEL, [f"--{key}", value])
    (line,) = error.value.problems
    assert line.startswith(f"{key}: must be a number, got ") and "True" in line


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.steps", 10**400, "must be at most 2,147,483,647"),
        ("training.bptt_depth", 2**31, "must be at most 2,147,483,647"),
        ("training.batch_size", "0x" + "f" * 5000, "must be at most 2,147,483,647"),
        ("evaluation.segments_read", f"[1, {2**40}]", "must be at most 2,147,483,647"),
        ("optimizer.lr", 10**400, "must be at most 2,147,483,647"),
        ("training.seed", 2**63, "must be at most 9,223,372,036,854,775,807"),
        ("training.steps", -(10**20), "must be at most 2,147,483,647"),
        ("data.workers", 10**9, "must be at most 256, got 1000000000"),
        ("pipeline.timeout_minutes", "1e300", "must be at most 1e+06, got 1e+300"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_beyond_any_range(key, value, said):
    with pytest.raises(ConfigError) as error:
        load_recipe(NOVEL, [f"--{key}", str(value)])
    (problem,) = error.value.problems
    assert problem.startswith(f"{key}: {said}") and ", got " in problem


def test_the_largest_seed():
    assert load_recipe(NOVEL, ["--training.seed", str(2**63 - 1)]).training.seed == 2**63 - 1


@pytest.mark.parametrize(
    "key",
    [
        *("model.source", "model.tokenizer", "data.train.source", "data.validation.source", "data.cache_dir"),
        *("training.output", "deepspeed"),
    ],
)
def test_paths_are_expanded_as_by_a_shell(monkeypatch, tmp_path, key):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "there")
    monkeypatch.delenv("NOWHERE", raising=False)
    for given, expected in (("~/a", "/home/me/a"), ("$PLACE/a", "there/a"), ("x${PLACE}", "xthere"), ("a~b$", "a~b$")):
        value: Any = load_recipe(NOVEL, [f"--{key}", given]).model_dump()
        for part in key.split("."):
            value = value[part]
        assert value == expected
    for given in ("''", "' '", "$NOWHERE/a", "~nobody_at_all/a", "a" * 256, r'"a\0"', r'"\uD800"'):
        with pytest.raises(ConfigError, match=f"^{key}: [^\n]*$"):
            load_recipe(NOVEL, [f"--{key}", given])


def test_a_name_with_a_dollar_that_exists(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("a$b").mkdir()
    assert load_recipe(NOVEL, ["--model.source", "a$b"]).model.source == "a$b"


def test_paths_of_the_command_line_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    arguments = cli.command_line().parse_args(["bench", "~/recipe.yaml", "--json", "$HOME/new/x.json"])
    options, problems = read_options(BenchOptions, arguments)
    assert (arguments.source, options.json, problems) == (Path("/home/me/recipe.yaml"), Path("/home/me/new/x.json"), [])
    with pytest.raises(SystemExit):
        cli.command_line().parse_args(["train", "$NOWHERE_AT_ALL/recipe.yaml"])


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', "[" * 100_000])
def test_a_deepspeed_file_that_would_be_misread(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(DeepSpeedConfigError, match=r"ds.json: .* JSON \((a given twice|maximum recursion)"):
        read_ds_config(tmp_path / "ds.json")
