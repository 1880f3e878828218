"""Errors about a document name its file, and the line or row in it."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
from chat_templates import chat_tokenizer
from datasets import Dataset

from hmt_ds.data import DataError, read_source
from hmt_ds.data.formats import Format
from hmt_ds.data.prepared import read_tokens

COLUMNS = {"prompt": "prompt", "completion": "completion"}
GOOD, BAD = {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def write(file: Path, rows: list[dict[str, str]]) -> None:
    """Rows in the kind of file that the suffixes name; lines with a blank one between them."""
    file.parent.mkdir(exist_ok=True)
    lines = "\n".join(json.dumps(row) + "\n" for row in rows)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(lines.encode()))
    elif file.suffix == ".jsonl":
        file.write_text(lines)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=1))
    elif file.suffix == ".csv":  # texts of two lines
        file.write_text(
            "prompt,completion\n\n" + "".join(f'"{row["prompt"]}\nx",{row["completion"]}\n' for row in rows)
        )
    elif file.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(file))
    else:
        Dataset.from_list(rows).save_to_disk(str(file.parent / "saved"))
        next((file.parent / "saved").glob("*.arrow")).rename(file)


@pytest.mark.parametrize(
    ("name", "place", "processes"),
    [
        ("b.jsonl", ", line 5", 2),
        ("b.jsonl", ", line 5", 1),
        ("b.jsonl.gz", ", line 5", 1),
        ("b.json", ", row 3", 1),
        ("b.csv", ", line 7", 1),
        ("b.parquet", ", row 3", 1),
        ("b.arrow", ", row 3", 1),
    ],
)
def test_a_row_that_is_not_of_the_format(folder, name, place, processes):
    kind = name.partition(".")[2]
    write(folder / "data" / f"a.{kind}", [GOOD] * 2)
    write(folder / "data" / name, [GOOD, GOOD, BAD, GOOD])
    write(folder / "data" / f"c.{kind}", [GOOD])
    with pytest.raises(DataError) as caught:
        read_tokens(
            str(folder / "data"),
            chat_tokenizer("chatml"),
            format=Format("completion"),
            cache_dir=folder / "tokens",
            processes=processes,
            columns=COLUMNS,
        )
    assert (
        str(caught.value)
        == f"{folder / 'data' / name}{place}: column 'completion' is blank: give it a text, or leave the row out"
    )


def test_where_rows_are_not_those_of_files(folder):
    """A part of a split, and a saved data set: the number alone."""
    write(folder / "data" / "a.jsonl", [GOOD, BAD, GOOD])
    Dataset.from_list([GOOD, BAD]).save_to_disk(str(folder / "saved"))
    for source, split, row in (("data/a.jsonl", "train[1:]", 0), ("saved", "train", 1)):
        with pytest.raises(DataError, match=rf"{source}: document {row} \(the first is 0\): column 'completion' is"):
            read_tokens(
                str(folder / source),
                chat_tokenizer("chatml"),
                format=Format("completion"),
                cache_dir=folder / "tokens",
                columns=COLUMNS,
                split=split,
            )


def test_texts_behind_blank_ones_and_parts_of_files(folder):
    """Blank texts are left out, and a separator makes several documents of a file."""
    write(folder / "data" / "a.jsonl", [{"text": text} for text in ("a", "", "b", " ", "c")])
    place = read_source(str(folder / "data")).place
    assert [place(n) for n in range(3)] == [f"{folder}/data/a.jsonl, line {line}" for line in (1, 5, 9)]
    for name, text in (("1.txt", "# a\nx\n# b\n"), ("2.txt", "first\n\n# c\n# d")):
        (folder / "books").mkdir(exist_ok=True)
        (folder / "books" / name).write_text(text)
    place = read_source(str(folder / "books"), separator="^# ").place
    lines = [("1.txt", 1), ("1.txt", 3), ("2.txt", 1), ("2.txt", 3), ("2.txt", 4)]
    assert [place(n) for n in range(5)] == [f"{folder}/books/{name}, line {line}" for name, line in lines]
    assert read_source(str(folder / "books")).place(1) == str(folder / "books" / "2.txt")
