"""Kinds of files, compressed ones, links and splits: each file is read, or named as left out."""

import gzip
import json
import logging
import os
import random
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset

from hmt_ds.data import DataError, load_documents
from hmt_ds.data.file_kinds import split_of
from hmt_ds.data.files import find_files
from hmt_ds.data.sources import read_source

ROWS = [{"text": "one\ntwo"}, {"text": "Né"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def texts(source: object, **options) -> list[str]:
    return list(load_documents(str(source), **options)["text"])


def compress(file: Path, codec: str) -> None:
    with pa.CompressedOutputStream(f"{file}.{'gz' if codec == 'gzip' else 'zst'}", codec) as out:
        out.write(file.read_bytes())
    file.unlink()


@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.parquet", "a.arrow", "a.txt", "a.md", "a"]
)
def test_every_kind_as_it_is_and_compressed(tmp_path, name, codec):
    file = tmp_path / name
    table, rows = Dataset.from_list(ROWS), [row["text"] for row in ROWS]
    match file.suffix:
        case ".jsonl" | ".ndjson":
            table.to_json(file, force_ascii=False)
        case ".json":
            write(file, json.dumps(ROWS, indent=1))
        case ".csv":
            table.to_csv(file, index=False)
        case ".parquet":
            table.to_parquet(file)
        case ".arrow":
            with pa.ipc.new_stream(str(file), table.data.schema) as out:
                out.write_table(table.data.table)
        case _:
            rows = [write(file, "One\n\ntwo é\n").read_text()]
    if codec:
        compress(file, codec)
    (file,) = tmp_path.iterdir()
    assert texts(file) == rows
    assert texts(tmp_path) == rows  # and as a folder


def test_a_csv_file_is_all_text(tmp_path):
    assert texts(write(tmp_path / "a.csv", "id,text\n1,NA\n2,null\n3,\n4,12\n")) == ["NA", "null", "12"]


def test_a_csv_file_with_commas_in_its_texts_is_refused(tmp_path):
    """pandas would take the text before the first comma for the name of a row."""
    write(tmp_path / "a.csv", "id,text\n1,good\n")
    write(tmp_path / "b.csv", "id,text\n2,not quoted, and read wrongly\n")
    for source in (tmp_path / "b.csv", tmp_path):
        with pytest.raises(DataError, match=r"b.csv as csv: its rows have more fields than its first line: put quotes"):
            texts(source)
    for rows in ("1,not quoted, a\n2,good\n", "1,a,\n2,b,\n"):  # names of rows that are a range leave no column behind
        write(tmp_path / "b.csv", f"id,text\n{rows}")
        with pytest.raises(DataError, match=r"b.csv as csv: its rows have more fields"):
            texts(tmp_path)
    write(tmp_path / "b.csv", "id,text\n2,fine\n3,not quoted, and read wrongly\n")
    with pytest.raises(DataError, match=r"b.csv as csv: .*Expected 2 fields in line 3, saw 3"):
        texts(tmp_path)


def test_utf_16_is_told_from_other_encodings(tmp_path):
    (tmp_path / "a.txt").write_bytes("Hé\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"line 1 is not UTF-8 .*`iconv -f utf-16 -t utf8`"):
        texts(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_files_without_a_suffix_are_read_as_what_they_are(tmp_path, kind):
    table = Dataset.from_list(ROWS)
    file = tmp_path / "part-00000"
    if kind == "jsonl":
        write(file, "\n" + lines_of([row["text"] for row in ROWS]))
    elif kind == "parquet":
        table.to_parquet(file)
    else:
        with pa.ipc.new_file(str(file), table.data.schema) as out:
            out.write_table(table.data.table)
    assert texts(tmp_path) == [row["text"] for row in ROWS]


def test_a_folder_of_several_kinds_is_read_kind_by_kind(tmp_path):
    write(tmp_path / "b.jsonl", lines_of(["json"]))
    write(tmp_path / "a.txt", "text")
    write(tmp_path / "c.csv", "id,text\n1,csv\n")
    assert texts(tmp_path) == ["csv", "json", "text"]
    with pytest.raises(DataError, match=r"split 'train\[:1\]' takes a part, but .* holds files of kinds"):
        texts(tmp_path, split="train[:1]")
    write(tmp_path / "b.jsonl", '{"body": "json"}\n')
    write(tmp_path / "c.csv", "body\ncsv\n")
    assert texts(tmp_path, text_field="body") == ["csv", "json", "text"]


def test_nothing_is_passed_over_without_a_word(tmp_path, caplog):
    folder = tmp_path / "odd [1] *"
    for name in ("a.txt", "sub/b.txt", "sub/notes.md", ".draft.txt", ".git/config", "README.md", "LICENSE"):
        write(folder / name, name)
    for name in ("x.pdf", "y.pdf", "sub/z.pdf", "sub/w.pdf", "script.py"):
        write(folder / name, "no text")
    write(folder / "none.txt", "")
    write(folder / "blank.txt", "\n \n")
    (folder / "binary").write_bytes(b"\0\1\2")
    (folder / "gone.txt").symlink_to(tmp_path / "nothing.txt")
    (folder / "itself.txt").symlink_to("itself.txt")
    (folder / "again.txt").symlink_to(folder / "sub/b.txt")
    (folder / "round").symlink_to(folder)
    write(tmp_path / "elsewhere/c.txt", "linked/c.txt")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.INFO, "hmt_ds"):
        source = read_source(str(folder))
    assert sorted(source.documents["text"]) == ["a.txt", "linked/c.txt", "sub/b.txt", "sub/notes.md"]
    assert source.files == 5
    assert sorted(source.left_out) == [
        "1 blank or absent texts",
        "1 empty (none.txt)",
        "1 links to a file that is read (sub/b.txt)",
        "1 of kind '.py' (script.py)",
        "1 without a suffix, not text (binary)",
        "2 about the data (LICENSE, README.md)",
        "2 hidden (.draft.txt, .git)",
        "2 linked to nothing (gone.txt, itself.txt)",
        "4 of kind '.pdf' (sub/w.pdf, sub/z.pdf, x.pdf and 1 more)",
    ]
    assert [f"{folder}: left out {note}" for note in source.left_out] == [record.message for record in caplog.records]


def test_readmes_are_documents_where_all_files_are_markdown(tmp_path):
    for name in ("one/README.md", "two/README.md"):
        write(tmp_path / name, name)
    assert texts(tmp_path) == ["one/README.md", "two/README.md"]


def test_patterns(tmp_path):
    for name in ("a-1.jsonl", "a-2.jsonl", "b-1.jsonl", "sub/a-3.jsonl"):
        write(tmp_path / name, lines_of([name]))
    assert texts(tmp_path / "a-*.jsonl") == ["a-1.jsonl", "a-2.jsonl"]
    assert texts(tmp_path / "**/a-[23].jsonl") == ["a-2.jsonl", "sub/a-3.jsonl"]
    assert texts(tmp_path / "s*") == ["sub/a-3.jsonl"]
    with pytest.raises(DataError, match=r"^no file matches '.*c-\*.jsonl': check the path"):
        texts(tmp_path / "c-*.jsonl")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("dev/a.txt", "validation"),
        ("squad_v2_dev.json", "validation"),
        ("wiki.valid.tokens", "validation"),
        ("the test of time.txt", None),
        ("latest.jsonl", None),
    ],
)
def test_the_split_of_a_name(name, split):
    assert split_of(Path(name)) == split


def test_splits_of_a_folder_are_told_apart(tmp_path):
    for name in ("train-0-of-2.jsonl", "train-1-of-2.jsonl", "test-0-of-1.jsonl", "dev.jsonl", "more.jsonl"):
        write(tmp_path / name, lines_of([name, name]))
    source = read_source(str(tmp_path), split="train")
    assert set(source.documents["text"]) == {"train-0-of-2.jsonl", "train-1-of-2.jsonl"}
    assert source.left_out == (
        "1 of no split, beside files that have one (more.jsonl)",
        "1 of split test (test-0-of-1.jsonl)",
        "1 of split validation (dev.jsonl)",
    )
    assert texts(tmp_path, split="train[:25%]") == ["train-0-of-2.jsonl"]
    assert set(texts(tmp_path, split="dev")) == set(texts(tmp_path, split="validation")) == {"dev.jsonl"}
    assert texts(tmp_path, split="val[:1]+test[:1]") == ["dev.jsonl", "test-0-of-1.jsonl"]
    with pytest.raises(
        DataError, match=r"no files of split 'held_out', but 1 of no split, 1 of test, 2 of train, 1 of"
    ):
        texts(tmp_path, split="held_out")


def test_files_of_one_split_are_taken_whole(tmp_path):
    write(tmp_path / "test.jsonl", lines_of(["a"]))
    assert texts(tmp_path) == texts(tmp_path, split="test") == texts(tmp_path / "test.jsonl") == ["a"]
    write(tmp_path / "other.jsonl", lines_of(["b"]))
    assert texts(tmp_path) == ["b"]  # what no split is named for is for training
    assert texts(tmp_path, split="test") == ["a"]


def test_a_compressed_file_that_is_cut_short_or_damaged(tmp_path):
    letters = random.Random(0)
    content = lines_of(["".join(letters.choices("abcdefgh", k=100)) for _ in range(20_000)]).encode()
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(content)[: len(content) // 5])
    with pytest.raises(DataError, match=rf"{file} is cut short: it can be read up to line \d+,\d\d\d; copy it again"):
        texts(tmp_path)
    file.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match=rf"{file} is damaged"):
        texts(file)
    compress(write(tmp_path / "b.txt", content.decode()), "zstd")
    whole = (tmp_path / "b.txt.zst").read_bytes()
    (tmp_path / "b.txt.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b.txt.zst is cut short"):
        texts(tmp_path / "b.txt.zst")


def test_a_compressed_file_that_is_replaced_is_read_again(tmp_path):
    for text in ("old", "new"):
        (tmp_path / "a.jsonl.gz").unlink(missing_ok=True)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines_of([text]).encode(), mtime=0))
        os.utime(tmp_path / "a.jsonl.gz", (1_700_000_000, 1_700_000_000))
        assert texts(tmp_path) == [text]


@pytest.mark.parametrize("name", ["bad.txt", "bad.jsonl", "bad.csv", "bad.txt.gz", "bad.jsonl.gz"])
def test_a_file_of_another_encoding_is_named_with_its_line(tmp_path, name):
    for good in ("a.txt", "b.jsonl"):
        write(tmp_path / good, lines_of(["good"]))
    content = "text\n" if "csv" in name else lines_of(["first"])
    content += '{"text": "caf\xe9"}\n'
    bad = content.encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(bad) if name.endswith("gz") else bad)
    with pytest.raises(DataError, match=rf"{name}.*line 2 is not UTF-8 .*convert it, as with") as caught:
        texts(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_field_that_one_file_lacks(tmp_path):
    write(tmp_path / "a.jsonl", lines_of(["a", "b"]))
    write(tmp_path / "b.jsonl", '{"body": "c"}\n')
    with pytest.raises(DataError, match=r"b.jsonl has no field 'text' in any row; the first row has: body"):
        texts(tmp_path)
    write(tmp_path / "a.jsonl", '{"text": "a", "body": "d"}\n')
    with pytest.raises(DataError, match=r"b.jsonl has no field 'text' in any row; the first row has: body"):
        texts(tmp_path)
    assert texts(tmp_path, text_field="body") == ["d", "c"]


@pytest.mark.parametrize("late", ["new field", "other kind", "object"])
def test_json_whose_other_fields_come_late_or_change(tmp_path, late, monkeypatch):
    """`datasets` would take the fields and their kinds from the first 10 MB."""
    before, behind = {"new field": ({}, {"more": 1}), "other kind": ({"more": 1}, {"more": "one"})}.get(
        late, ({"more": None}, {"more": {"a": 1}})
    )
    rows = [{"text": f"{n} " + "x" * 5000, **(behind if n > 2400 else before)} for n in range(2500)]
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert texts(file) == [row["text"] for row in rows]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as out:
        out.write('{"text": "last", "more": [2]}\n')
    assert texts(tmp_path)[-1] == "last" and len(texts(tmp_path)) == 2501
    rows[-1]["text"] = 7
    write(file, "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"(a.jsonl, line 2,500: 'text' holds int, but must hold text|a.jsonl as json: .*int64)"
    ):
        texts(file)


def test_memory_stays_flat(tmp_path, monkeypatch):
    """Texts are checked a batch at a time."""
    seen = []
    real = pa.compute.match_substring_regex
    monkeypatch.setattr("hmt_ds.data.text_checks.ROWS", 2)
    monkeypatch.setattr(
        "hmt_ds.data.text_checks.pc.match_substring_regex", lambda t, p: [seen.append(len(t)), real(t, p)][1]
    )
    assert len(texts(write(tmp_path / "a.jsonl", lines_of(["a", "b", " ", "c", "d"])))) == 4
    assert seen == [2, 2, 1]


def test_nothing_there(tmp_path):
    assert find_files(str(tmp_path / "a.txt"), "train") is None
    assert find_files("owner/name", "train") is None
