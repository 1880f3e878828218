"""Addresses of files, listed and copied by fsspec, and revisions of data sets on the hub."""

import gzip
import json
import logging
from typing import Any

import datasets
import fsspec
import pytest
from datasets import Dataset

from hmt_ds.data import DataError, load_documents, read_source, sources
from hmt_ds.data.prepared import file_states


@pytest.fixture(autouse=True)
def memory(tmp_path_factory, monkeypatch):
    """An empty file system in memory, and a cache of our own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def lines_of(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def texts(source: str, **options: Any) -> list[str]:
    return list(load_documents(source, **options)["text"])


def test_a_file_a_folder_and_a_pattern(memory):
    memory.pipe("/bucket/a-1.jsonl", lines_of("one"))
    memory.pipe("/bucket/deep/a-2.jsonl.gz", gzip.compress(lines_of("two")))
    memory.pipe("/bucket/b.txt", b"three")
    assert texts("memory://bucket/a-1.jsonl") == ["one"]
    assert texts("memory://bucket") == texts("memory://bucket/") == ["one", "two", "three"]
    assert texts("memory://bucket/**/a-*.jsonl*") == ["one", "two"]


def test_what_is_not_read_is_not_copied_and_is_named(memory, caplog):
    for name in ("data/train-0-of-1.jsonl", "data/test-0-of-1.jsonl", "README.md", ".gitattributes", "x.pdf"):
        memory.pipe(f"/set/{name}", lines_of(name))
    memory.pipe("/set/data/empty.jsonl", b"")
    memory.pipe("/set/data/train-binary", b"\0\1")
    with caplog.at_level(logging.INFO, "hmt_ds"):
        found = read_source("memory://set")
    assert list(found.documents["text"]) == ["data/train-0-of-1.jsonl"]
    assert found.files == 1
    assert sorted(found.left_out) == [
        "1 about the data (README.md)",
        "1 empty (data/empty.jsonl)",
        "1 hidden (.gitattributes)",
        "1 of kind '.pdf' (x.pdf)",
        "1 of split test (data/test-0-of-1.jsonl)",
        "1 without a suffix, not text (data/train-binary)",
    ]
    copied = [record.message for record in caplog.records if record.message.startswith("copying")]
    assert len(copied) == 2 and not any("test-0" in line or "pdf" in line for line in copied)
    assert texts("memory://set", split="test") == ["data/test-0-of-1.jsonl"]


def test_a_file_is_copied_once_until_it_is_replaced(memory, caplog):
    memory.pipe("/set/a.jsonl", lines_of("old"))
    states = []
    with caplog.at_level(logging.INFO, "hmt_ds"):
        for _ in range(2):
            assert texts("memory://set") == ["old"]
            states.append(file_states("memory://set", "train"))
        memory.pipe("/set/a.jsonl", lines_of("new"))
        assert texts("memory://set") == ["new"]
    assert sum(record.message.startswith("copying") for record in caplog.records) == 2
    assert states[0] == states[1] != file_states("memory://set", "train")  # so that tokens are found again, or made


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nothing/*.jsonl", "memory://nothing/.*.jsonl cannot be listed: nothing is at .*; check the address"),
        ("s4://bucket/a.jsonl", "s4://bucket/a.jsonl cannot be listed: Protocol not known: s4"),
        (
            "memory://kinds",
            r"memory://kinds holds no file that can be read; name files that end in .*; left out: 1 of kind '.pdf'",
        ),
    ],
)
def test_an_address_that_cannot_be_read(memory, address, message):
    memory.pipe("/kinds/a.pdf", b"x")
    with pytest.raises(DataError, match=rf"^{message}") as caught:
        load_documents(address)
    assert "\n" not in str(caught.value)


def test_a_copy_that_fails_leaves_no_file(memory, monkeypatch):
    memory.pipe("/set/a.jsonl", lines_of("one"))

    def fail(_: Any, __: str, target: str) -> None:
        with open(target, "wb") as out:  # noqa: PTH123
            out.write(b"{")
        raise OSError("the connection was lost")

    monkeypatch.setattr(type(memory), "get_file", fail)
    with pytest.raises(DataError, match=r"/set/a.jsonl cannot be copied into .*: the connection was lost"):
        load_documents("memory://set")
    monkeypatch.undo()
    assert texts("memory://set") == ["one"]


def test_the_revision_of_a_data_set_on_the_hub(monkeypatch, tmp_path):
    asked = {}

    def load_dataset(source: str, name: str | None, **options: Any) -> Dataset:
        asked.update(options, source=source, name=name)
        return Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    assert texts("owner/stories", name="en", revision="v1.0") == ["a"]
    assert asked == {"source": "owner/stories", "name": "en", "split": "train", "revision": "v1.0"}
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"revision .v1\.0. is for data sets of the hub only"):
        load_documents(str(tmp_path / "a.txt"), revision="v1.0")
