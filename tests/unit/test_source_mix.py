"""Several sources: shares, passes, and an order that no kill changes."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value

from hmt_ds.data import DataError, QueueState, SourceShare, WindowLoader, WindowPlan, WindowPlanState
from hmt_ds.data.window_plan import Packing

# Documents of four sources: novels, articles, questions, and a source of three documents.
COUNTS = (20, 70, 400, 3)
WEIGHTS = (4.0, 2.5, 1.0, 0.5)
SHARES = [SourceShare(count, weight) for count, weight in zip(COUNTS, WEIGHTS, strict=True)]
SOURCE_OF = np.repeat(range(4), COUNTS)
FIRST = np.cumsum([0, *COUNTS])


def draw_lengths() -> np.ndarray:
    draw = np.random.default_rng(0)
    most = np.repeat((900, 200, 12, 500), COUNTS)
    return draw.integers(1, most)


LENGTHS = draw_lengths()


def plan(**changes) -> WindowPlan:
    options = {"rows": 4, "segments": 3, "segment_length": 10, "seed": 1, "sources": SHARES}
    return WindowPlan(changes.pop("lengths", LENGTHS), **options | changes)


def begun(windows) -> list[int]:
    """The documents of windows in the order in which rows take them."""
    firsts = (row[n] for window in windows for n in range(len(window.pieces[0])) for row in window.pieces)
    pieces = (piece for first in firsts if first for piece in (first, *first.behind))
    return [piece.document for piece in pieces if piece.offset == 0]


@pytest.mark.parametrize("mix_by", ["documents", "tokens"])
def test_the_shares_are_those_of_the_weights(mix_by):
    windows = list(itertools.islice(plan(mix_by=mix_by), 2000))
    read = np.zeros(4)
    for window in windows:
        for piece in (piece for row in window.pieces for piece in row if piece):
            read[SOURCE_OF[piece.document]] += piece.length if mix_by == "tokens" else piece.offset == 0
    assert np.abs(read / read.sum() - np.array(WEIGHTS) / sum(WEIGHTS)).max() < 0.01
    # and from the beginning on, as closely as whole documents allow
    taken = np.bincount(SOURCE_OF[begun(windows)[:16]], minlength=4)
    assert mix_by == "tokens" or taken.tolist() == [8, 5, 2, 1]


def test_a_source_of_small_weight_comes_in_the_middle_of_its_share():
    sources = [SourceShare(50, 9), SourceShare(50, 1)]
    documents = begun(itertools.islice(plan(lengths=[5] * 100, sources=sources, mix_by="documents"), 2))
    assert [document // 50 for document in documents[:20]] == [0] * 5 + [1] + [0] * 9 + [1] + [0] * 4


def test_each_pass_over_a_source_is_a_permutation_of_its_own():
    documents = np.array(begun(itertools.islice(plan(mix_by="documents", segments=100), 1000)))
    orders = []
    for source, count in enumerate(COUNTS):
        own = documents[SOURCE_OF[documents] == source] - FIRST[source]
        passes = [own[start : start + count].tolist() for start in range(0, len(own) - count, count)]
        assert passes and all(sorted(one) == list(range(count)) for one in passes)
        assert source == 3 or len(set(map(tuple, passes))) == len(passes)
        orders.append(passes[0])
    assert orders[0] == np.random.default_rng([1, 0]).permutation(20).tolist()  # the first as if it were alone


def test_equal_sources_have_different_orders():
    halves = [SourceShare(50, 1), SourceShare(50, 1)]
    documents = np.array(begun(itertools.islice(plan(lengths=[5] * 100, sources=halves), 40)))
    first, second = (documents[documents // 50 == source][:50] % 50 for source in (0, 1))
    assert sorted(first) == sorted(second) and first.tolist() != second.tolist()


def test_resume_after_every_window_equals_the_uninterrupted_plan():
    whole = list(itertools.islice(plan(), 60))
    for index, window in enumerate(whole):
        state = WindowPlanState.from_dict(json.loads(json.dumps(window.state.to_dict())))
        assert state == window.state
        assert list(itertools.islice(plan(state=state), 59 - index)) == whole[index + 1 :]


def test_a_mix_whose_documents_share_segments():
    packing = Packing(gap=2, least=4)
    assert sorted(begun(plan(epochs=1, packing=packing))) == list(range(sum(COUNTS)))
    whole = list(itertools.islice(plan(packing=packing), 40))
    assert any(first.behind for window in whole for row in window.pieces for first in row)
    for index, window in enumerate(whole):
        assert list(itertools.islice(plan(packing=packing, state=window.state), 39 - index)) == whole[index + 1 :]
    taken = np.bincount(SOURCE_OF[begun(itertools.islice(plan(mix_by="documents", packing=packing), 500))], minlength=4)
    assert np.abs(taken / taken.sum() - np.array(WEIGHTS) / sum(WEIGHTS)).max() < 0.01


def test_the_state_of_one_source_is_as_it_was():
    window = next(plan(lengths=LENGTHS[:20], sources=[SourceShare(20, 3.0)]))
    same = next(plan(lengths=LENGTHS[:20], sources=()))
    assert window == same
    assert set(window.state.to_dict()) == {"epoch", "cursor", "rows"}


def test_one_epoch_reads_each_document_of_every_source_once():
    assert sorted(begun(plan(epochs=1))) == list(range(sum(COUNTS)))


def test_documents_left_out_of_a_mix():
    left_out = {0, 19, 25, 100, 490}
    assert sorted(begun(plan(epochs=1, left_out=left_out))) == sorted(set(range(sum(COUNTS))) - left_out)


def test_a_source_that_is_left_out_leaves_the_others_their_proportions():
    windows = itertools.islice(plan(mix_by="documents", left_out=range(20, 90)), 500)
    taken = np.bincount(SOURCE_OF[begun(windows)], minlength=4)
    assert taken[1] == 0
    assert np.abs(taken / taken.sum() - np.array([4, 0, 1, 0.5]) / 5.5).max() < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": SHARES[:3]}, "must have 493 documents together .they have 490"),
        ({"sources": [*SHARES[:3], SourceShare(3, 0.0)]}, "and each a weight above 0"),
        ({"state": WindowPlanState(0, 0, (None,) * 4)}, "position is of 1 sources, but the run has 4"),
        ({"state": WindowPlanState(0, 0, (None,) * 4, (QueueState(),) * 3)}, "of 3 sources, but the run has 4"),
        (
            {"state": WindowPlanState(0, 0, (None,) * 4, (*(QueueState(),) * 3, QueueState(0, 3, 9)))},
            "document 3 of source 3, which has 3",
        ),
        ({"left_out": range(493)}, "all 493 documents are left out"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        plan(**changes)


def loader(ranks: int, rank: int, state: dict | None) -> WindowLoader:
    """One rank's batches; token t of document d is 1000 d + t, so that a batch tells what was read."""
    rows = {
        "input_ids": [np.arange(length) + 1000 * number for number, length in enumerate(LENGTHS)],
        "length": LENGTHS,
    }
    tokens = Dataset.from_dict(rows, features=Features({"input_ids": List(Value("int32")), "length": Value("int64")}))
    options = {"segments": 3, "segment_length": 10, "seed": 1, "sources": SHARES, "num_workers": 0}
    return WindowLoader(tokens, rank=rank, world_size=ranks, batch_size=4 // ranks, state=state, **options)


def read_and_save(file: Path, ranks: int, windows: int) -> None:
    """Read windows of all ranks, appending each to the file with the position after it, as a run saves checkpoints."""
    done = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []
    file.write_text("".join(json.dumps(line) + "\n" for line in done))  # a line that a kill cut off is not there
    state = done[-1]["position"] if done else None
    batches = zip(*(loader(ranks, rank, state) for rank in range(ranks)), strict=True)
    with file.open("a") as out:
        for parts in itertools.islice(batches, windows - len(done)):
            ids = [row for part in parts for row in part.input_ids.tolist()]
            out.write(json.dumps({"ids": ids, "position": parts[0].position}) + "\n")
            out.flush()
            time.sleep(0.005)


def test_ten_kills_at_random_on_1_2_and_4_ranks_change_nothing(tmp_path):
    windows, draw, file = 300, random.Random(0), tmp_path / "killed"
    context = multiprocessing.get_context("fork")
    for ranks in itertools.islice(itertools.cycle((1, 2, 4)), 10):
        process = context.Process(target=read_and_save, args=(file, ranks, 10**6))
        process.start()
        before, end = file.stat().st_size if file.exists() else 0, time.monotonic() + 60
        while not file.exists() or file.stat().st_size <= before:  # until it has read on
            assert process.is_alive() and time.monotonic() < end
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.08))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    read_and_save(file, 2, windows)
    read_and_save(tmp_path / "whole", 1, windows)
    whole, pieced = ((tmp_path / name).read_text().splitlines()[:windows] for name in ("whole", "killed"))
    assert len(whole) == windows and pieced == whole
