"""Streams of several sources: shares, passes over each source, exact resume on other ranks, what is refused."""

import json
from pathlib import Path

import pytest
from bad_folder import make_folder
from test_stream import documents_of, first, loader, same

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.data import DataError, stream_batches
from hmt_ds.data.stream_mix import APART, StreamMix
from hmt_ds.preflight.data_figures import data_figures
from hmt_ds.preflight.prepare import prepare
from hmt_ds.preflight.source_tokens import stream_of, tokenizer_of
from hmt_ds.reporting.data_table import data_lines

LONG, SHORT, PART = 350, 120, 150  # rows of the sources, and of a part: 100 of the first and 50 of the second
SOURCES = "[{source: long.jsonl, weight: 2}, {source: short.jsonl, format: completion}]"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A recipe and two sources: texts, and prompts with completions, which have weights of tokens."""
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"text {n} " * (n % 4 + 1)} for n in range(LONG)]
    asked = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(SHORT)]
    for name, rows in (("long", texts), ("short", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mix(folder: Path, *words: str, sources: str = SOURCES, makes: bool = True) -> StreamMix:
    given = ["--data.train", sources, "--data.stream", str(PART), "--data.mix_by", "documents", *words]
    recipe = load_recipe(folder / "recipe.yaml", given)
    found = stream_of(recipe, tokenizer_of(recipe), makes=makes)
    assert isinstance(found, StreamMix)
    return found


def test_shares_and_passes(folder):
    """Each part has rows in the ratio of the weights; in each pass over a source no row comes twice or is left out."""
    begun = documents_of(first(loader(mix(folder)), 900))
    part = begun[:PART]
    assert sorted(part) == [*range(100), *range(APART, APART + 50)] and part != sorted(part)
    long, short = [n for n in begun if n < APART], [n - APART for n in begun if n >= APART]
    assert len(long) > 2 * LONG and len(short) > 3 * SHORT
    for found, rows in ((long, LONG), (short, SHORT)):
        passes = [found[at : at + rows] for at in range(0, len(found) - rows + 1, rows)]
        assert all(sorted(one) == list(range(rows)) for one in passes) and passes[0] != passes[1]


def test_weights_of_tokens_are_those_of_each_source(folder):
    """Texts have none, which means ones; prompts are not in the loss."""
    tokens, indices = mix(folder).documents(0)
    weights = tokens["weights"]
    assert all(weights[n] is None for n in range(100)) and all(0 in weights[n] for n in range(100, 150))
    assert indices.tolist() == [*range(100), *range(APART, APART + 50)]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_anywhere_it_goes_on_exactly(folder, workers):
    """From any position, in later passes too, with parts that were deleted; on one rank and on two."""
    whole = first(loader(mix(folder)), 700)
    assert whole[-8].position["part"] > LONG // 100 + 1
    for at in (3, 150, 333, 690):
        state = json.loads(json.dumps(whole[at].position))
        fresh = mix(folder, "--training.output", f"other{at}")
        following = whole[at + 1 : at + 7]
        assert all(map(same, first(loader(fresh, state, num_workers=workers), 6), following))
        for rank in (0, 1):
            halves = first(loader(fresh, state, rank, 2), 6)
            for half, batch in zip(halves, following, strict=True):
                assert half.input_ids.equal(batch.input_ids[2 * rank : 2 * rank + 2])
                assert half.position == batch.position


def test_a_rank_that_waits_for_the_parts_of_another(folder):
    """Beyond the end of a source too, where the number of its parts has to be known."""
    makes, waits = mix(folder), mix(folder, makes=False)
    for batch, other in zip(loader(makes), loader(waits), strict=False):
        assert same(batch, other)
        if batch.position["part"] == 8:
            break


def test_what_is_kept_on_disk(folder):
    """Of each source the first part and those around the one that is read."""
    for batch, _ in zip(loader(mix(folder)), range(700), strict=False):
        for source in (0, 1):
            kept = [path for path in folder.glob(f"**/stream-*-{source}/*/[0-9]*") if (path / "rows").exists()]
            assert len(kept) <= 5, (batch.position["part"], kept)


def test_documents_that_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(stream_batches, "MOST_IDLE", 5)
    begun = documents_of(first(loader(mix(folder), left_out=[0, APART + 7]), 900))
    assert not {0, APART + 7} & set(begun) and {7, APART} <= set(begun) and begun.count(APART) > 2
    everything = [*range(LONG), *range(APART, APART + SHORT)]
    with pytest.raises(DataError, match="all documents of the stream are left out"):
        next(iter(loader(mix(folder), left_out=everything)))


def test_in_a_recipe(folder):
    words = ["--data.train", SOURCES, "--data.stream", str(PART), "--data.mix_by", "documents"]
    recipe = load_recipe(folder / "recipe.yaml", words)
    found = prepare(recipe, folder / "recipe.yaml")
    lines = "\n".join(data_lines(data_figures(recipe, found.sources, 1)))
    assert [one.documents for one in found.sources] == [100, 50] and "66.7%" in lines and "33.3%" in lines


@pytest.mark.parametrize(
    ("more", "words", "line"),
    [
        ("", ["--data.mix_by", "tokens"], "stream mixes sources by their rows, not by tokens: set mix_by documents"),
        ("", ["--data.stream", "149"], r"149 has too few rows for the weight 1 of data\.train\.1: raise it to 150"),
        (", separator: x", [], r"cannot apply data\.train\.1\.separator"),
        (", text_field: body", [], r"data\.train\.1: short\.jsonl has no column 'body'"),
    ],
)
def test_what_is_refused(folder, more, words, line):
    sources = f"[{{source: long.jsonl, weight: 2}}, {{source: short.jsonl{more}}}]"
    given = {"--data.train": sources, "--data.stream": str(PART), "--data.mix_by": "documents"}
    given |= dict([words]) if words else {}
    with pytest.raises(ConfigError, match=line):
        prepare(
            load_recipe(folder / "recipe.yaml", [word for pair in given.items() for word in pair]),
            folder / "recipe.yaml",
        )
