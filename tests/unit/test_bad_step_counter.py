"""Steps that are not finite: which documents are suspected, how they are counted, where a rollback leads."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmt_ds.checkpoint import CheckpointError
from hmt_ds.memory import MemoryState
from hmt_ds.training import bad_steps
from hmt_ds.training.bad_steps import (
    MAX_ROLLBACKS,
    BadStepCounter,
    TooManyBadSteps,
    documents_of,
    read_excluded,
    suspects,
    write_excluded,
)

DOCUMENTS = torch.tensor([[4, 4, 7], [5, 6, -1], [8, 8, 8]])
ALL = torch.ones(3, 3, dtype=torch.bool)
WINDOWS: Any = [SimpleNamespace(documents=DOCUMENTS, others=None)]


def step(bad: bool, finite: torch.Tensor = ALL, *, skipped: bool = False, reset_rows: int = 0) -> Any:
    """The output of a training step, with the given flags."""
    return SimpleNamespace(bad=bad, skipped=bad or skipped, finite=finite, reset_rows=reset_rows)


def broken(*places: tuple[int, int]) -> torch.Tensor:
    """``[rows, segments]`` bool, False at the given places, where the loss is not finite."""
    finite = ALL.clone()
    for place in places:
        finite[place] = False
    return finite


@pytest.mark.parametrize(
    ("finite", "found"),
    [
        (broken((0, 1), (0, 2)), {4}),  # the document behind it in the row may have it from there
        (broken((0, 2), (1, 1)), {7, 6}),
        (broken((1, 2)), {4, 5, 6, 7, 8}),  # nothing is read there
        (ALL, {4, 5, 6, 7, 8}),  # a gradient alone: nobody knows whose
    ],
)
def test_suspects(finite, found):
    assert suspects(finite, documents_of(WINDOWS)) == found


def test_documents_that_share_segments_are_suspects_together():
    others = torch.full((3, 3, 2), -1)
    others[0, 1] = torch.tensor([9, 10])
    windows: Any = [*WINDOWS, SimpleNamespace(documents=DOCUMENTS, others=others)]
    finite = torch.ones(3, 6, dtype=torch.bool)
    finite[0, 4:] = False
    assert suspects(finite, documents_of(windows)) == {4, 9, 10}
    assert suspects(torch.ones(3, 6, dtype=torch.bool), documents_of(windows)) == {4, 5, 6, 7, 8, 9, 10}


def test_counting():
    counter = BadStepCounter()
    assert counter.count(step(False), WINDOWS) is None
    said = counter.count(step(True, broken((0, 1)), reset_rows=1), WINDOWS)
    assert said is not None and "skipped; it read document 4 of data.train" in said and "is dropped: 1" in said
    counter.count(step(True, broken((1, 0))), WINDOWS)
    assert (counter.consecutive, counter.documents) == (2, {4, 5})
    assert "overflowed" in str(counter.count(step(False, skipped=True), WINDOWS))  # fp16 looks for its scale
    assert (counter.consecutive, counter.documents) == (0, set())


def roll_back(counter: BadStepCounter, *, allowed: bool) -> tuple[Path, set[int]]:
    """After a bad step that read document 4."""
    counter.count(step(True, broken((0, 0))), WINDOWS)
    return counter.roll_back(Path("run/checkpoints"), allowed=allowed)


def test_rollbacks_end(monkeypatch):
    """After some rollbacks to one checkpoint, each without more documents, the documents are not the cause."""
    monkeypatch.setattr(bad_steps, "newest_intact", lambda folder, say: folder / "step_000004")
    counter = BadStepCounter()
    for _ in range(MAX_ROLLBACKS):
        assert roll_back(counter, allowed=True) == (Path("run/checkpoints/step_000004"), {4})
        assert (counter.consecutive, counter.documents) == (0, set())
    with pytest.raises(TooManyBadSteps, match=r"optimizer\.lr"):
        roll_back(counter, allowed=True)


def test_no_rollback(monkeypatch):
    with pytest.raises(TooManyBadSteps, match=r"--training\.on_bad_steps rollback --checkpoint\.resume auto"):
        roll_back(BadStepCounter(), allowed=False)
    monkeypatch.setattr(bad_steps, "newest_intact", lambda folder, say: None)
    with pytest.raises(TooManyBadSteps, match="no checkpoint to go back to"):
        roll_back(BadStepCounter(), allowed=True)


def test_generated_documents_have_no_file_to_repair(monkeypatch):
    counter = BadStepCounter(generated=True)
    said = counter.count(step(True, broken((0, 1))), WINDOWS)
    assert said is not None and said.endswith("it read generated document 4 of data.retrieval")
    with pytest.raises(TooManyBadSteps, match=r"unchanged: leave them out with --training\.on_bad_steps rollback") as e:
        roll_back(counter, allowed=False)
    assert "data.train" not in str(e.value) and "repair" not in str(e.value)
    monkeypatch.setattr(bad_steps, "newest_intact", lambda folder, say: None)
    with pytest.raises(TooManyBadSteps, match=r"go back to: change training\.seed, or optimizer\.lr, and start again"):
        roll_back(counter, allowed=True)


def test_the_list_of_excluded_documents(tmp_path):
    assert read_excluded(tmp_path) == []
    write_excluded(tmp_path, [3, 12])
    assert read_excluded(tmp_path) == [3, 12]
    (tmp_path / "left_out.json").write_text("[3")
    with pytest.raises(CheckpointError, match=r"left_out\.json is not readable.*repair it, or delete it"):
        read_excluded(tmp_path)


def test_a_memory_that_is_not_finite_is_lost_with_its_row_alone():
    state = MemoryState(torch.ones(3, 2, 1, 4), torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.long))
    state.memories[1, 0, 0, 3] = math.inf
    mended, rows = state.without_broken()
    assert rows.tolist() == [False, True, False]
    assert mended.valid.tolist() == [[True] * 2, [False] * 2, [True] * 2]
    assert mended.memories.sum(dim=(1, 2, 3)).tolist() == [8, 0, 8]


def test_documents_of_several_sources_are_named_with_their_source():
    named = BadStepCounter(sources=[20, 5, 30]).name([24, 3, 20, 25])
    parts = "3 of data.train.0, 0 of data.train.1, 4 of data.train.1, 0 of data.train.2"
    assert named == f"documents {parts} (counted from 0, without blank ones)"
    assert BadStepCounter(sources=[20]).name([3]) == "document 3 of data.train (counted from 0, without blank ones)"
