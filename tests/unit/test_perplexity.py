"""Held-out perplexity by segments read, against plain sums over single documents."""

import math
from typing import Any

import pytest
import torch
from tiny import L, cut, document, empty_state, make_model, make_window

from hmt_ds.evaluation.perplexity import perplexity, perplexity_by_segments, segments_needed
from hmt_ds.memory import HMT, IGNORED, MemoryState, Window, read_window


class Reader:
    """What the evaluation asks of an executor, in one process."""

    device = torch.device("cpu")
    reports = True

    def __init__(self, model: HMT):
        self.model = model

    @torch.no_grad()
    def read(self, window: Window, state: MemoryState | None, **options: Any):
        state = state or empty_state(self.model, len(window.input_ids))
        yield from read_window(self.model, self.model.settings, window, state, **options)


@torch.no_grad()
def by_hand(model: HMT, documents: list, start: int, end: int, **options: Any) -> tuple[int, float]:
    """Tokens scored and perplexity of segments start to end - 1 of each document, read alone."""
    loss, tokens = 0.0, 0
    for one in documents:
        window = make_window([[one]])
        outputs = read_window(model, model.settings, window, empty_state(model, 1), **options)
        for n, (output, _) in enumerate(outputs):
            if start <= n < end:
                loss += float(output.loss.sum())
                tokens += int((window.labels[:, n] != IGNORED).sum())
    return tokens, math.exp(loss / tokens)


def test_buckets_are_sums_over_documents():
    """Documents of unequal length share rows and windows; none of that may show."""
    model = make_model(sensory_tokens=2)
    documents = [document(length) for length in (5 * L + 2, 3, 4 * L, L, 6 * L + 1, 2 * L)]
    whole = make_window([documents[:2] + documents[3:4], [documents[2], *documents[5:]], [documents[4]]])
    windows = [cut(whole, 0, 3), cut(whole, 3, 6), cut(whole, 6)]
    rows = perplexity_by_segments(Reader(model), lambda: windows, [0, 1, 3])  # type: ignore[arg-type]
    assert [(row.segments_read, row.below) for row in rows] == [(0, 1), (1, 3), (3, 6)]
    for row in rows:
        tokens, with_memory = by_hand(model, documents, row.segments_read, row.below)
        _, without = by_hand(model, documents, row.segments_read, row.below, mode="backbone")
        assert row.tokens == tokens
        assert row.memory_on == pytest.approx(with_memory, rel=1e-9)
        assert row.memory_off == pytest.approx(without, rel=1e-9)
        assert abs(with_memory / without - 1) > 1e-6  # so a mix-up of the two would show


def test_nothing_scored_is_nan():
    model = make_model()
    windows = [make_window([[document(2 * L)]])]
    rows = perplexity_by_segments(Reader(model), lambda: windows, [1, 4])  # type: ignore[arg-type]
    assert rows[0].tokens == L - 1 and rows[1].tokens == 0 and math.isnan(rows[1].memory_on)


@pytest.mark.parametrize(
    ("loss", "tokens", "expected"),
    [(0.0, 3, 1.0), (2 * math.log(5), 2, 5.0), (2400.0, 3, math.inf), (math.nan, 3, math.nan), (0.0, 0, math.nan)],
)
def test_perplexity(loss, tokens, expected):
    """800 nats a token are more than a float holds, and no reason to end a run."""
    assert perplexity(loss, tokens) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(("read", "needed"), [([0], 1), ([0, 1], 2), ([1], 2), ([1, 2, 4], 8)])
def test_segments_needed(read, needed):
    assert segments_needed(read) == needed


def test_nothing_read_before_is_a_bucket():
    windows = [make_window([[document(2 * L)]])]
    (row,) = perplexity_by_segments(Reader(make_model()), lambda: windows, [0])  # type: ignore[arg-type]
    assert (row.segments_read, row.below, row.tokens) == (0, 1, L)
