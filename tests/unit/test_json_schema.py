"""The recipe's JSON schema for editors, and `hmt-ds keys WORD`."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from hmt_ds.cli import main
from hmt_ds.config.json_schema import SCHEMA_FILE, editor_line, recipe_schema
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.sections import keys

RECIPES = sorted((Path(__file__).parents[2] / "launch" / "recipes").glob("*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(json.loads(recipe_schema()))


def test_the_schema_is_valid_and_its_file_up_to_date():
    """Written by `hmt-ds keys --schema > hmt_ds/config/recipe.schema.json`."""
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert SCHEMA_FILE.read_text(encoding="utf-8") == recipe_schema()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_fit_the_schema_that_their_first_line_names(recipe):
    first = recipe.read_text(encoding="utf-8").splitlines()[0]
    named = first.removeprefix(editor_line(""))
    assert (recipe.parent / named).resolve() == SCHEMA_FILE.resolve()
    # through JSON, as editors see it: the keys of a mapping are text
    assert not list(VALIDATOR.iter_errors(json.loads(json.dumps(yaml.safe_load(recipe.read_text(encoding="utf-8"))))))


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("training", {"stepz": 3}),
        ("training", {"batch_size": 0}),
        ("memory", {"mode": "hmtt"}),
        ("data", {"workers": "many"}),
    ],
)
def test_wrong_keys_and_values_do_not_fit(section, values):
    recipe = yaml.safe_load(RECIPES[0].read_text(encoding="utf-8"))
    assert VALIDATOR.is_valid(recipe)
    recipe.setdefault(section, {}).update(values)
    assert not VALIDATOR.is_valid(recipe)


def test_every_key_has_its_help_text_in_one_line():
    text = recipe_schema()
    for name, field in keys(Recipe):
        if field.description:
            assert json.dumps(" ".join(field.description.split()), ensure_ascii=False) in text, name


def run_keys(monkeypatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "keys", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_keys_are_found_by_words(monkeypatch, capsys):
    assert run_keys(monkeypatch, "CLIPPING") == 0
    listed = capsys.readouterr().out
    assert "training.gradient_clipping" in listed and "training.steps" not in listed
    assert run_keys(monkeypatch, "windows", "accumulated") == 0
    assert "training.gradient_accumulation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chekpoint"], "no key's name or help text contains 'chekpoint': did you mean 'checkpoint'?"),
        (["x", "--schema"], "leave one of them out"),
    ],
)
def test_words_that_find_nothing_are_an_error(words, message, monkeypatch, capsys):
    assert run_keys(monkeypatch, *words) == 2
    assert message in "".join(capsys.readouterr())
