"""Filters of a source: rows by the values of their columns, documents by their length; counts of what is left out."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from bad_folder import make_folder
from datasets import Dataset

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.data import DataError, load_documents, read_source
from hmt_ds.launch.dry_run import dry_run_lines
from hmt_ds.launch.prepare_data import prepare_data
from hmt_ds.preflight.prepare import prepare

ROWS = [
    {"text": "a", "language": "en", "stars": 3, "ok": True, "score": 0.5},
    {"text": "b", "language": "de", "stars": 10, "ok": True, "score": 1.5},
    {"text": "", "language": "en", "stars": 12, "ok": False, "score": 2.5},
    {"text": "d", "language": None, "stars": None, "ok": None, "score": None},
    {"text": "e", "language": "en", "stars": 10, "ok": True, "score": 3.0},
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tmp_path = tmp_path / "data"
    tmp_path.mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    Dataset.from_list(ROWS).to_csv(str(tmp_path / "rows.csv"), index=False)
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    return tmp_path


@pytest.mark.parametrize("source", ["rows.jsonl", "rows.parquet", "saved"])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, "abde"),
        ({"language": "en"}, "ae"),
        ({"language": ["en", "de"]}, "abe"),
        ({"stars": 10}, "be"),
        ({"stars": [3, 12]}, "a"),
        ({"ok": True}, "abe"),
        ({"stars": {"min": 10, "max": None}}, "be"),
        ({"score": {"min": None, "max": 1.5}}, "ab"),
        ({"score": {"min": 1, "max": 2}}, "b"),
        ({"language": "en", "stars": {"min": 10, "max": None}}, "e"),
    ],
    ids=str,
)
def test_rows_by_their_columns(folder, source, where, expected):
    assert "".join(load_documents(str(folder / source), where=where)["text"]) == expected


def test_of_a_csv_file_too(folder):
    assert load_documents(str(folder / "rows.csv"), where={"language": ["en"]})["text"][:] == ["a", "e"]


def test_counts_and_places(folder):
    """A line for each reason, and errors name the lines of the file, not those that are left."""
    found = read_source(str(folder / "rows.jsonl"), where={"stars": {"min": 5, "max": 20}, "language": ["en", "de"]})
    assert found.left_out == ("2 whose stars is not at least 5 and at most 20", "1 blank or absent texts")
    assert found.dropped == 3
    assert [found.place(n) for n in range(2)] == [f"{folder}/rows.jsonl, line {line}" for line in (2, 5)]
    found = read_source(str(folder), where={"language": "de"})  # of several kinds of files
    assert [found.place(n) for n in range(3)] == [
        f"{folder}/saved/data-00000-of-00001.arrow, row 2",
        f"{folder}/rows.csv, line 3",
        f"{folder}/rows.jsonl, line 2",
    ]


def test_other_formats_and_named_columns(folder):
    rows = [{"a": str(n), "b": "x", "prompt": n % 2} for n in range(6)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "a", "completion": "b"}
    documents = load_documents(str(folder / "asked.jsonl"), columns=columns, where={"prompt": 1})
    assert documents.column_names == ["prompt", "completion"] and documents["prompt"][:] == ["1", "3", "5"]


def test_columns_that_come_late(folder):
    """Where `datasets` cannot read all fields, those of the filter are read too."""
    rows = [{"text": "a", "language": "en"}] * 3 + [{"text": "b", "language": "de", "other": {"x": 1}}]
    rows += [{"text": "c", "language": "de", "other": "x"}]
    (folder / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_documents(str(folder / "late.jsonl"), where={"language": "de"})["text"][:] == ["b", "c"]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (
            {"langage": "en"},
            "no column 'langage'; it has: text, language, stars, ok, score; did you mean 'language'?",
        ),
        ({"stars": "many"}, "where: column 'stars' of .* holds int64, and cannot be compared with 'many'"),
        ({"stars": 1.5}, "where: column 'stars' of .* holds int64, and cannot be compared with 1.5"),
        ({"language": {"min": 1, "max": None}}, "where: column 'language' of .* holds string, and cannot be compared"),
        ({"language": "fr"}, "where leaves none of the 5 rows of .*: 5 whose language is not fr"),
    ],
)
def test_conditions_that_cannot_be(folder, where, line):
    with pytest.raises(DataError, match=line):
        load_documents(str(folder / "rows.jsonl"), where=where)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"where": {"a": []}}, "has a list without values"),
        ({"where": {"a": {"min": 2, "max": 1}}}, "min 2 is above max 1"),
        ({"where": {"a": {}}}, "needs min or max"),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens 3 is above max_tokens 2"),
        ({"min_tokens": 0}, "min_tokens"),
    ],
)
def test_keys_that_cannot_be(tmp_path, values, line):
    make_folder(tmp_path)
    with pytest.raises(ConfigError, match=line):
        load_recipe(tmp_path / "recipe.yaml", ["--data.train", json.dumps({"source": "text.txt"} | values)])


def test_in_a_recipe_with_lengths(tmp_path, monkeypatch, capsys):
    """The table of check has the count, prepare's log the reasons; other lengths do not tokenize again."""
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "word " * (n + 1), "language": "en" if n % 2 else "de"} for n in range(20)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source: dict[str, Any] = {"source": "many.jsonl", "where": {"language": "en"}}
    file = tmp_path / "recipe.yaml"

    def check(**keys: int) -> tuple[list[str], int]:
        recipe = load_recipe(file, ["--data.train", json.dumps(source | keys)])
        found = prepare(recipe, file)
        assert found.train is not None
        return dry_run_lines(recipe, file, found, 1), len(found.train)

    _, documents = check()
    assert documents == 10
    monkeypatch.setattr("hmt_ds.data.prepared.tokenize_documents", None)  # not called again
    lines, documents = check(min_tokens=15, max_tokens=40)
    assert 0 < documents < 10
    header, row = (next(line for line in lines if words in line) for words in ("documents", "many.jsonl"))
    assert header.split()[:5] == ["source", "files", "documents", "out", "tokens"]
    assert row.split()[1:4] == ["1", str(documents), str(20 - documents)]
    capsys.readouterr()
    prepare_data(load_recipe(file, ["--data.train", json.dumps(source | {"min_tokens": 15})]), 1)
    said = capsys.readouterr().err
    assert "many.jsonl: left out 10 whose language is not en" in said and "1 shorter than 15 tokens" in said
    with pytest.raises(
        ConfigError, match=r"min_tokens .* and max_tokens .* leave none of the 10 documents of many\.jsonl"
    ):
        check(min_tokens=10_000)
