"""Retrieval from memory: what counts as right and as found, read from outputs that are known."""

import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from hmt_ds.data import RetrievalDocuments, RetrievalLoader, RetrievalText, load_tokenizer
from hmt_ds.data.settings import RetrievalSettings
from hmt_ds.evaluation.retrieval import count_answers, row_of, score_segment, write_retrieval
from hmt_ds.memory import IGNORED, SegmentOutput, Window
from hmt_ds.memory.loss import cross_entropy
from hmt_ds.reporting.retrieval import plot_retrieval, retrieval_table

VOCABULARY, CACHED = 357, 5


class Oracle:
    """A reader that answers and recalls rightly, except in some rows."""

    device, data_ranks, data_rank, stages, reports = torch.device("cpu"), 1, 0, 1, True

    def __init__(self, wrong_answer: int, wrong_memory: int):
        self.wrong_answer, self.wrong_memory = wrong_answer, wrong_memory
        self.engine = SimpleNamespace(module=SimpleNamespace(cross_entropy=cross_entropy))

    def read(self, window: Window, state: None):
        assert state is None and window.targets is not None
        rows = len(window.input_ids)
        for n in range(len(window)):
            labels, targets = window.labels[:, n], window.targets[:, n]
            logits = torch.nn.functional.one_hot(labels.clamp(min=0), VOCABULARY).float()
            logits[labels == IGNORED] = torch.randn(VOCABULARY)
            logits[self.wrong_answer] = logits[self.wrong_answer].roll(1, dims=-1)
            cached = min(n, CACHED)
            share = torch.full((rows, cached), 0.1)
            for b in range(rows):
                if 0 < targets[b] <= cached:
                    share[b, (cached - int(targets[b]) + (b == self.wrong_memory)) % cached] = 0.9
            nothing = torch.zeros(rows)
            wrong = self.engine.module.cross_entropy(logits.flatten(0, 1), labels.flatten()).view(rows, -1).sum(dim=1)
            yield SegmentOutput(wrong, nothing, nothing, share, nothing), None


@pytest.fixture(scope="module")
def documents() -> RetrievalDocuments:
    text = RetrievalText(load_tokenizer("hmt_ds/data/samples/words"))
    return RetrievalDocuments(text, RetrievalSettings(), segment_length=24, seed=0)


def read(documents, segments, total=6, **wrong):
    oracle = Oracle(**{"wrong_answer": 1, "wrong_memory": 2, **wrong})
    loader = RetrievalLoader(documents, segments=lambda _: segments, rank=0, world_size=1, batch_size=4, total=total)
    windows = (
        (Window(b.input_ids, b.labels, b.lengths, b.starts, targets=b.targets), b.documents[:, 0]) for b in loader
    )
    return count_answers(oracle, windows, total)


def test_documents_are_counted(documents):
    """Row 1 of each window answers wrongly, row 2 recalls the memory after the right one."""
    counts, recalls = read(documents, 6)
    assert counts.shape == (6, 3) and recalls is not None
    assert (counts[:, 0] == 5).all()
    right, found = (0, 2, 3, 4), (0, 1, 3, 4, 5)  # documents 4 and 5 are rows 0 and 1 of the second window
    assert (counts[right, 1] == counts[right, 0]).all() and (counts[(1, 5), 1] == 0).all()
    # where only one memory is there, it is found
    assert (counts[found, 2] == counts[found, 0]).all() and counts[2, 2] == 1
    row = row_of(counts, 6, "hmt")
    assert (row.segments, row.documents, row.questions) == (6, 6, int(counts[:, 0].sum()))
    assert row.right[0] == pytest.approx(counts[:, 1].sum() / counts[:, 0].sum())
    assert row.found is not None and row.found[1] < row.found[0] < row.found[2]
    assert row_of(counts, 6, "rmt").found is None


def test_a_memory_that_is_no_longer_cached_is_not_found(documents):
    counts, recalls = read(documents, 12, wrong_answer=1, wrong_memory=3)
    assert recalls is not None
    asked = recalls.told[recalls.told >= 0]
    back = np.flatnonzero(recalls.told >= 0) - asked
    assert counts[0, 2] == (back <= CACHED).sum() < counts[0, 0]


def test_the_map_has_each_weight_at_the_segment_remembered(documents):
    _, recalls = read(documents, 12)
    assert recalls is not None and recalls.weights.shape == (12, 12)
    for n in range(1, 12):
        told = recalls.told[n]
        assert told < n and recalls.weights[n, n:].max(initial=0) == 0
        assert n - told > CACHED or recalls.weights[n].argmax() == told
        assert (recalls.weights[n] > 0).sum() == min(n, CACHED)
    assert recalls.told[0] == -1


def test_an_answer_is_right_only_with_all_of_its_tokens():
    nothing, share = torch.zeros(2), torch.tensor([[0.1, 0.7, 0.2], [0.1, 0.2, 0.7]])
    output = SegmentOutput(torch.tensor([0.0, 1.0]), nothing, nothing, share, nothing)
    scores = score_segment(output, torch.tensor([2, 2]))
    assert scores.tolist() == [[True, True, True], [True, False, False]]
    assert score_segment(output, torch.tensor([1, 0])).tolist() == [[True, True, False], [False, False, False]]


def test_files_table_and_picture(documents, tmp_path):
    counts, recalls = read(documents, 12)
    rows = [row_of(counts, 12, "hmt"), row_of(counts[:1], 40, "hmt")]
    write_retrieval(tmp_path / "new" / "r.json", 7, {"kind": "keys"}, 1 / 24, rows)
    found = json.loads((tmp_path / "new" / "r.json").read_text())
    assert found["rows"][0]["right"] == list(rows[0].right) and found["rows"][1]["right"][1:] == [None, None]
    assert found["step"] == 7 and found["rows"][0]["segments"] == 12 and math.isclose(found["chance"], 1 / 24)
    plot_retrieval(rows, 1 / 24, recalls, tmp_path / "map.png")
    plot_retrieval(rows[:1], 1 / 24, None, tmp_path / "plain.png")
    assert (tmp_path / "map.png").stat().st_size > (tmp_path / "plain.png").stat().st_size > 1000
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(retrieval_table([*rows, row_of(counts, 3, "rmt")], "title", 1 / 24))
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    assert "chance: 4.2%" in lines[-1] and f"{rows[0].right[0]:.1%} [" in lines[3] and "-" in lines[5]
