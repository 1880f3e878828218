"""Every kind of source, and every error line."""

import json
import os
import re
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict

import hmt_ds.data
from hmt_ds.data import DataError, load_documents, sources

SAMPLES = Path(hmt_ds.data.__file__).parent / "samples"


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch):
    """A cache of our own, and no waiting for a network that is not there."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(source: Path, **options) -> list[str]:
    documents = load_documents(str(source), **options)
    assert documents.column_names == ["text"]
    return list(documents["text"])


def test_a_text_file_is_one_document(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffHé\n\nwörld\n".encode())
    assert texts(file) == ["Hé\n\nwörld\n"]


def test_separator_splits_before_each_match_and_keeps_what_stands_before(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("Title\nCHAPTER 1\none CHAPTER x\nCHAPTER 2\ntwo\n")
    parts = texts(file, separator="^CHAPTER ")
    assert parts == ["Title\n", "CHAPTER 1\none CHAPTER x\n", "CHAPTER 2\ntwo\n"]
    assert texts(file, separator="^CHAPTER 2") == ["Title\nCHAPTER 1\none CHAPTER x\n", "CHAPTER 2\ntwo\n"]
    file.write_text("\n\nCHAPTER 1\none\n")
    assert texts(file, separator="^CHAPTER ") == ["CHAPTER 1\none\n"]


@pytest.mark.parametrize(("novel", "chapters"), [("prideprejudice", 61), ("persuasion", 24)])
def test_the_samples_split_into_their_chapters(novel, chapters):
    front, *parts = texts(SAMPLES / f"{novel}.txt", separator=r"^Chapter \d+$")
    assert [part.split("\n", 1)[0] for part in parts] == [f"Chapter {n}" for n in range(1, chapters + 1)]
    assert "jane austen" in front.lower()
    assert len(texts(SAMPLES / f"{novel}.txt", separator=r"\A|^Chapter (?!1$)\d+$")) == chapters


def test_json_lines_arrays_and_parquet(tmp_path):
    rows = [{"text": "a", "id": 1}, {"text": "b", "id": 2}]
    array = tmp_path / "a.json"
    array.write_text(json.dumps(rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    assert texts(write_jsonl(tmp_path / "a.jsonl", rows)) == ["a", "b"]
    assert texts(array) == ["a", "b"]
    assert texts(tmp_path / "a.parquet") == ["a", "b"]


def test_the_text_field_and_blank_documents(tmp_path):
    rows = [{"body": "a", "text": "x"}, {"body": " \n\t", "text": "x"}, {"body": None, "text": "x"}, {"body": "b"}]
    assert texts(write_jsonl(tmp_path / "a.jsonl", rows), text_field="body") == ["a", "b"]


def test_a_folder_is_read_recursively_in_the_order_of_its_paths(tmp_path):
    folder = tmp_path / "odd [1] *"
    (folder / "b").mkdir(parents=True)
    (folder / "README.md").write_text("not a document")
    (folder / "b/.ipynb_checkpoints").mkdir()
    for name in ("c.txt", "b/z.txt", "b/a.txt", "a.txt", ".draft.txt", "b/.ipynb_checkpoints/a.jsonl"):
        (folder / name).write_text(name)
    assert texts(folder) == ["a.txt", "b/a.txt", "b/z.txt", "c.txt"]


def test_a_file_that_is_replaced_by_one_of_the_same_time(tmp_path):
    """As rsync -t, tar and cp -p do it: the new one is read, and not the cache of the old one."""
    for text in ("old text", "new text"):
        (tmp_path / "new.jsonl").write_text(json.dumps({"text": text}) + "\n")
        file = (tmp_path / "new.jsonl").replace(tmp_path / "text.jsonl")
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert texts(file) == [text]


def test_saved_data_sets(tmp_path):
    one, two = Dataset.from_dict({"text": ["a", " "]}), Dataset.from_dict({"text": ["b"]})
    one.save_to_disk(tmp_path / "one")
    DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    assert texts(tmp_path / "one") == ["a"]
    assert texts(tmp_path / "both") == ["a"]
    assert texts(tmp_path / "both", split="test") == ["b"]
    with pytest.raises(DataError, match="has no split 'dev': set split to one of train, test"):
        texts(tmp_path / "both", split="dev")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read the saved data set .*one"):
        texts(tmp_path / "one")


def refused(source: object, *parts: str, **options) -> None:
    """The source is refused in one line that has all the parts."""
    with pytest.raises(DataError) as caught:
        load_documents(str(source), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("source", ["absent/sub/a.txt", "/absent/folder", "absent.jsonl"])
def test_an_absent_path(source):
    refused(source, f"{source!r} is neither a file nor a folder", "check the path")


def test_an_unreachable_name():
    refused(
        "owner/stories", "'owner/stories' is neither a file nor a folder, nor a data set that can be", "Couldn't reach"
    )


def test_a_folder_that_is_a_script_is_not_run(tmp_path):
    (tmp_path / "stories.py").write_text("raise SystemExit('this was run')")
    refused(
        tmp_path,
        "holds no file that can be read; name files that end in",
        ".txt, .md, .jsonl",
        "1 of kind '.py' (stories.py)",
    )
    refused(tmp_path / "stories.py", "cannot read files with suffix '.py'")


def test_a_hub_data_set_that_is_a_script(tmp_path, monkeypatch):
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "stories.py").write_text("raise SystemExit('this was run')")
    monkeypatch.chdir(tmp_path)
    # `datasets` takes the folder for a data set's repository; load_documents would have looked into it before.
    with pytest.raises(
        DataError, match=r"Dataset scripts are no longer supported, but found stories\.py\): check the name$"
    ):
        sources._load_by_name("stories", None, "train", None)


def test_an_unknown_kind(tmp_path):
    (tmp_path / "a.doc").write_text("a")
    refused(tmp_path / "a.doc", "a.doc: cannot read files with suffix '.doc'; convert it to one of .txt")


def test_unreadable_files_are_named(tmp_path, caplog):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    refused(tmp_path / "bad.txt", "bad.txt as text: line 1 is not UTF-8", "can't decode byte 0xff in position 0")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text":\n')
    refused(tmp_path / "bad.jsonl", "bad.jsonl as json: line 2: JSON parse error")
    (tmp_path / "half.jsonl").write_text('{"text": "\\ud83d"}\n{"text": "a"}\n')
    refused(tmp_path / "half.jsonl", "line 1: JSON parse error", "surrogates not allowed")
    (tmp_path / "twice.jsonl").write_text('{"text": "a"}\n{"text": "b", "text": "c"}\n')
    refused(tmp_path / "twice.jsonl", "line 2: JSON parse error: a name occurs twice in an object: text, text")
    (tmp_path / "deep.jsonl").write_text('{"text": "a", "more": 1}\n{"text": "b", "more": ' + "[" * 3000 + "\n")
    refused(tmp_path / "deep.jsonl", "line 2: JSON parse error: nested too deeply")
    assert not caplog.records  # those of `datasets`
    (tmp_path / "empty.jsonl").write_text("")
    refused(tmp_path / "empty.jsonl", "empty.jsonl as json: it is empty")
    (tmp_path / "none").mkdir()
    write_jsonl(tmp_path / "none" / "b.jsonl", [{"text": "a"}])
    (tmp_path / "none" / "a.jsonl").write_text("[]")
    refused(tmp_path / "none", "a.jsonl as json: it has no rows: leave it out")
    (tmp_path / "none.csv").write_text("text\n")
    refused(tmp_path / "none.csv", "none.csv as csv: it has no rows")
    Dataset.from_dict({"text": []}).to_parquet(tmp_path / "none.parquet")
    refused(tmp_path / "none.parquet", "none.parquet as parquet: it has no rows")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and then nothing")
    refused(tmp_path / "bad.parquet", "bad.parquet as parquet", "Parquet magic bytes not found")


def test_a_document_that_is_not_utf8_is_named(tmp_path):
    """pyarrow reads it, as many bytes as there are."""
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=r"a.jsonl: line 2 is not UTF-8 .*: convert it"):
        load_documents(str(file))


def test_utf16_without_its_mark_is_refused(tmp_path):
    """It is UTF-8 as well, and half of what would be learnt zeros."""
    (tmp_path / "a.txt").write_bytes("some text".encode("utf-16-le"))
    refused(tmp_path / "a.txt", "a.txt is full of zeros, as UTF-16 is: convert it", "utf-16le")
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "a zero \0 among letters"}, {"text": None}, {"text": ""}])
    assert len(load_documents(str(file))) == 1


def test_the_unreadable_file_of_a_folder_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    (tmp_path / "b.jsonl").write_text("{\n")
    refused(tmp_path, "b.jsonl as json")


def test_files_that_do_not_fit_together(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "id": 1}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b", "id": {"of": "x"}}])
    assert texts(tmp_path) == ["a", "b"]  # of JSON the texts alone are read
    for name, rows in {"a": {"text": ["a"], "id": [1]}, "b": {"text": ["b"], "id": ["x"], "more": [2]}}.items():
        (tmp_path / f"{name}.jsonl").unlink()
        Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
    assert texts(tmp_path) == ["a", "b"]
    for name, rows in {"a": "text,id\na,1\n", "b": "text,other\nb,1\n"}.items():
        (tmp_path / f"{name}.parquet").unlink()
        (tmp_path / f"{name}.csv").write_text(rows)
    refused(tmp_path, "cannot read 2 csv files together", "b.csv has other (int64), but", "a.csv has id (int64)")
    for name, field in {"a": "text", "b": "body"}.items():
        (tmp_path / f"{name}.csv").unlink()
        Dataset.from_dict({field: ["a"]}).to_parquet(tmp_path / f"{name}.parquet")
    refused(tmp_path, "cannot read 2 parquet files together", "b.parquet has body (", "a.parquet has text (")


def test_an_unknown_split_of_files(tmp_path):
    refused(write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}]), "Unknown split", "test", split="test")


def test_a_missing_text_field(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "id": 1}])
    refused(file, "has no column 'txet'; it has: text, id; did you mean 'text'?", text_field="txet")
    with pytest.raises(DataError, match=re.escape("it has: text, id; choose one of these") + "$"):
        load_documents(str(file), text_field="summary")
    refused(file, "column 'id'", "holds int64, not text", text_field="id")
    lists = write_jsonl(tmp_path / "b.jsonl", [{"text": ["a"]}])
    refused(lists, "column 'text'", "not text (string), but list in", "b.jsonl, line 1; name another column")
    mixed = write_jsonl(tmp_path / "c.jsonl", [{"text": "a"}, {"text": None}, {"text": 3}])
    refused(mixed, "column 'text'", "not text (string), but int in", "c.jsonl, line 3")


def test_no_documents_left(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": " "}, {"text": ""}])
    refused(file, "holds no documents: all 2 texts are blank")
    (tmp_path / "a.txt").write_text("")
    refused(tmp_path / "a.txt", "holds no documents: all 1 texts are blank")


def test_separators_that_cannot_be_used(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    refused(file, "separator '^CHAPTER ' is for text files only", separator="^CHAPTER ")
    (tmp_path / "a.txt").write_text("a")
    refused(tmp_path / "a.txt", "separator '(' is not a valid regular expression", separator="(")
    refused(tmp_path / "a.txt", "separator '^CHAPTER ' matches nowhere in", separator="^CHAPTER ")
