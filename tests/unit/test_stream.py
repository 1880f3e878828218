"""Streams: parts of a source, their order and exact resume, what is kept on disk, and what cannot be read."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from bad_folder import make_folder
from datasets import Dataset

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.data import Batch, DataError
from hmt_ds.data.stream import Stream
from hmt_ds.data.stream_batches import StreamLoader
from hmt_ds.data.stream_rows import RowStream
from hmt_ds.launch.prepare_data import prepare_data
from hmt_ds.preflight.data_figures import data_figures
from hmt_ds.preflight.prepare import prepare
from hmt_ds.preflight.source_tokens import stream_of, tokenizer_of
from hmt_ds.reporting.data_table import data_lines
from hmt_ds.training.identity import identity

SIZE, DOCUMENTS, LENGTH = 10, 34, 16


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A recipe, and a source of 34 documents, of which two are blank, in two files."""
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"document {n} " * (n % 7 + 1), "odd": n % 2} for n in range(DOCUMENTS)]
    rows[3]["text"], rows[31]["text"] = " ", ""
    (tmp_path / "many").mkdir()
    for name, some in (("a", rows[:15]), ("b", rows[15:])):
        (tmp_path / "many" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        Dataset.from_list(some).to_parquet(str(tmp_path / f"{name}.parquet"))
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    return tmp_path


def stream(folder: Path, *words: str, source: str = "many", **options: Any) -> Stream:
    recipe = load_recipe(folder / "recipe.yaml", ["--data.train.source", source, "--data.stream", str(SIZE), *words])
    return stream_of(recipe, tokenizer_of(recipe), **options)


def loader(
    of: Stream, state: dict[str, Any] | None = None, rank: int = 0, ranks: int = 1, **options: Any
) -> StreamLoader:
    shape = {"segments": 2, "segment_length": LENGTH, "batch_size": 4 // ranks}
    return StreamLoader(of, seed=1, state=state, rank=rank, world_size=ranks, **shape, **options)


def documents_of(batches: list[Batch]) -> list[int]:
    """The documents in the order in which they were begun."""
    return [
        int(batch.documents[row, n])
        for batch in batches
        for n in range(batch.starts.shape[1])
        for row in range(len(batch.starts))
        if batch.starts[row, n] and batch.documents[row, n] >= 0
    ]


def same(one: Batch, other: Batch) -> bool:
    tensors = ("input_ids", "labels", "lengths", "starts", "documents")
    return all(getattr(one, name).equal(getattr(other, name)) for name in tensors) and one.position == other.position


def first(of: StreamLoader, number: int) -> list[Batch]:
    return [batch for batch, _ in zip(of, range(number), strict=False)]


@pytest.mark.parametrize("source", ["many", "./*.parquet", "saved"])
def test_every_document_once_in_a_pass(folder, source):
    """Part after part, in another order in each pass; blank documents are left out."""
    begun = documents_of(first(loader(stream(folder, source=source)), 80))
    expected = [9, 10, 10, 3]  # of each part; indices count those that are read
    ids = [part * SIZE + n for part, count in enumerate(expected) for n in range(count)]
    for one in (begun[: len(ids)], begun[len(ids) : 2 * len(ids)]):
        assert sorted(one) == ids and one != ids
        assert [document // SIZE for document in one] == sorted(document // SIZE for document in one)
    assert begun[: len(ids)] != begun[len(ids) : 2 * len(ids)]


def test_tokens_are_those_of_the_source_read_whole(folder):
    found = load_recipe(folder / "recipe.yaml", ["--data.train.source", "many"])
    whole = prepare(found, folder / "recipe.yaml").train
    of = stream(folder)
    parts = [of.part(number) for number in range(4)]
    assert of.part(4) is None and whole is not None
    assert [ids for part in parts if part for ids in part.tokens["input_ids"]] == whole["input_ids"][:]


@pytest.mark.parametrize("pack", [False, True])
def test_resumed_anywhere_it_goes_on_exactly(folder, pack):
    """From every position, within parts and between them, with parts that were deleted; on one rank and on two."""
    from hmt_ds.data import Packing

    options = {"packing": Packing(1, 4) if pack else None}
    whole = first(loader(stream(folder), **options), 50)
    for at in range(0, 49, 4):
        state = json.loads(json.dumps(whole[at].position))
        fresh = stream(folder, "--training.output", f"other{at % 3}")
        assert all(map(same, first(loader(fresh, state, **options), 6), whole[at + 1 : at + 7]))
        for rank in (0, 1):
            halves = first(loader(fresh, state, rank, 2, **options), 6)
            for half, batch in zip(halves, whole[at + 1 : at + 7], strict=False):
                assert (
                    half.input_ids.equal(batch.input_ids[2 * rank : 2 * rank + 2]) and half.position == batch.position
                )


def test_processes_that_read_ahead_change_nothing(folder):
    whole = first(loader(stream(folder)), 30)
    assert all(map(same, first(loader(stream(folder), num_workers=2), 30), whole))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(folder, suffix):
    text = (folder / "many" / "a.jsonl").read_bytes()
    with pa.output_stream(
        str(folder / f"a.jsonl{suffix}"), compression={".gz": "gzip", ".zst": "zstd"}[suffix]
    ) as file:
        file.write(text)
    part = stream(folder, source=f"a.jsonl{suffix}").part(1)
    assert part is not None and len(part.tokens) == 5


def test_files_at_an_address(folder):
    """They are read where they are, as far as they are needed."""
    system = fsspec.filesystem("memory")
    for name in ("a", "b"):
        system.pipe(f"/far/{name}.jsonl", (folder / "many" / f"{name}.jsonl").read_bytes())
    far = stream(folder, source="memory://far/*.jsonl")
    near = stream(folder, "--training.output", "other")
    assert all(map(same, first(loader(far), 30), first(loader(near), 30)))
    assert not list(folder.glob("**/hmt_ds_remote"))


def test_what_is_kept_on_disk(folder):
    """The first part, and those around the one that is read."""
    of, parts = stream(folder), set()
    for batch, _ in zip(loader(of), range(60), strict=False):
        kept = {int(one.name) for one in folder.glob("**/stream-*/*/[0-9]*")}
        place = batch.position["part"]
        assert kept <= {0, *range(place - 1, place + 3)}
        parts.add(place)
    assert parts == {0, 1, 2, 3}


def test_a_part_is_made_while_the_one_before_is_read(folder, monkeypatch):
    """The first batch does not wait for the second part."""
    made, make, gate = list[int](), Stream._make, threading.Event()

    def slow(self: Stream, number: int, folder: Path) -> None:
        assert number == 0 or gate.wait(60)
        make(self, number, folder)
        made.append(number)

    monkeypatch.setattr(Stream, "_make", slow)
    batches = iter(loader(stream(folder)))
    next(batches)
    assert made == [0]
    gate.set()
    ended = time.monotonic() + 60
    while made != [0, 1] and time.monotonic() < ended:
        time.sleep(0.05)
    assert made == [0, 1]


def test_a_source_that_has_changed_is_refused(folder):
    state = next(batch.position for batch in loader(stream(folder)) if batch.position["part"] == 1)
    file = folder / "many" / "b.jsonl"
    file.write_text(file.read_text().replace("document 16", "something else 16"))
    with pytest.raises(DataError, match="part 2 of the stream has other documents than when the run was saved"):
        next(iter(loader(stream(folder, "--training.output", "other"), state)))


def test_documents_that_are_left_out(folder):
    batches = first(loader(stream(folder), left_out=[0, 12, *range(20, 30)]), 30)
    begun = documents_of(batches)
    assert not {0, 12, *range(20, 30)} & set(begun) and {1, 13, 30} <= set(begun)
    with pytest.raises(DataError, match="all documents of the stream are left out"):
        next(iter(loader(stream(folder), left_out=range(40))))


def test_filters_and_parts_without_documents(folder):
    """A part of which nothing is left is passed over; the first one must have documents."""
    rows = [{"text": f"document {n}", "kept": int(n < 5 or n > 25)} for n in range(30)]
    (folder / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data.train.where", "{kept: 1}"]
    begun = documents_of(first(loader(stream(folder, *words, source="kept.jsonl")), 20))
    assert sorted(begun[:9]) == [0, 1, 2, 3, 4, 20, 21, 22, 23]
    recipe = load_recipe(
        folder / "recipe.yaml",
        ["--data.train.source", "kept.jsonl", "--data.stream", "10", "--data.train.where", "{kept: 2}"],
    )
    with pytest.raises(ConfigError, match=r"data\.train: where leaves none of the 10 rows"):
        prepare(recipe, folder / "recipe.yaml")


def test_a_bad_row_of_a_later_part(folder):
    """The line names the source and its rows; where nothing is left of a part, that is still no error."""
    rows = [{"prompt": "a", "completion": "b" if n != 25 else " "} for n in range(30)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    of = stream(folder, "--data.train.format", "completion", source="asked.jsonl")
    assert of.part(1)
    with pytest.raises(
        DataError, match=r"^asked\.jsonl, rows 20 to 29: document 5 \(the first is 0\): column 'completion'"
    ):
        of.part(2)


def test_parts_are_read_once_in_order(folder, monkeypatch):
    """Only another part than the next one begins again."""
    opened = []
    from hmt_ds.data import stream_rows

    real = stream_rows.open_stream
    monkeypatch.setattr(stream_rows, "open_stream", lambda *keys: opened.append(1) or real(*keys))
    rows = RowStream("many", ["text"], SIZE, "train", None, None)
    sizes = [len(rows.read(number)) for number in (0, 1, 2, 3, 4)]
    assert sizes == [10, 10, 10, 4, 0] and len(opened) == 1
    assert rows.read(1)["text"][0].startswith("document 10 ") and len(opened) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data.train.split", "train[:10%]"], "a stream .* reads no part of one"),
        (["--data.train.source", "."], "and a stream reads one: name those of one kind"),
        (["--data.train.source", "s3://bucket/data"], r"such as s3://bucket/data/\*\.parquet"),
        (["--data.train.text_field", "body"], "many has no column 'body'; it has: text, odd"),
        (["--data.train.separator", "^x"], "cannot apply data.train.separator"),
        (["--data.train", '[{source: many}, {source: "a.parquet"}]'], "not by tokens: set mix_by documents"),
        (["--data.train.source", "bad.jsonl"], "bad.jsonl.*cannot be read"),
    ],
)
def test_what_cannot_be_streamed(folder, words, line):
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    base = ["--data.train.source", "many"] if "--data.train" not in words else []
    with pytest.raises(ConfigError, match=line):
        prepare(load_recipe(folder / "recipe.yaml", [*base, "--data.stream", "10", *words]), folder / "recipe.yaml")


def test_in_a_recipe(folder):
    """The run is described by its first part, and cannot go on with parts of another size."""
    recipe = load_recipe(folder / "recipe.yaml", ["--data.train.source", "many", "--data.stream", "10"])
    found = prepare(recipe, folder / "recipe.yaml")
    assert found.train is not None and len(found.train) == 9
    assert "stream       of its first 10 rows: 9 documents" in "\n".join(
        data_lines(data_figures(recipe, found.sources, 1))
    )
    assert identity(recipe, found)["data.stream"] == 10
    with pytest.raises(ConfigError, match=r"data\.stream: a stream is tokenized while the run reads it"):
        prepare_data(recipe, 1)
