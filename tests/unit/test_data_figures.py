"""The report before training: counted by hand, and compared with what a run reads."""

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hmt_ds.config.depth_schedule import DepthSchedule
from hmt_ds.data import SourceShare, WindowPlan
from hmt_ds.data.prepared import SourceTokens
from hmt_ds.preflight.data_figures import data_figures
from hmt_ds.preflight.read_data import ReadSource
from hmt_ds.reporting.data_table import DataFigures, SourceFigures, data_lines, size

LENGTHS = ([5, 10, 11, 95], [3] * 40)
WEIGHTS = (3.0, 1.0)


def recipe(steps: int = 50, mix_by: str = "tokens", depth: int = 4) -> Any:
    training = SimpleNamespace(steps=steps, gradient_accumulation=2, batch_size=3)
    memory, data = (
        SimpleNamespace(segment_length=10),
        SimpleNamespace(mix_by=mix_by, stream=None, cache_dir="cache", pack=False),
    )
    return SimpleNamespace(training=training, memory=memory, data=data, depths=DepthSchedule({0: depth}))


def sources(*lengths: list[int], weights: tuple[float, ...] = WEIGHTS) -> list[Any]:
    found = []
    for number, (some, weight) in enumerate(zip(lengths, weights, strict=False)):
        tokens = Dataset.from_dict({"input_ids": [[0] * n for n in some], "length": some})
        source: Any = SimpleNamespace(source=f"part [{number}]", weight=weight)
        found.append(ReadSource(source, SourceTokens(tokens, number or None, ())))
    return found


def test_one_source():
    figures = data_figures(recipe(), sources(LENGTHS[0]), pipelines=2)
    (one,) = figures.sources
    assert (one.documents, one.tokens, one.share) == (4, 121, 1)
    assert list(one.segments) == [1, 1, 10, 10]  # documents of 1, 1, 2 and 10 segments
    assert one.padding == pytest.approx(1 - 121 / 140)
    assert one.passes == pytest.approx(50 * 4 * 2 * 3 * 2 / 14)
    assert figures.steps_per_pass == pytest.approx(14 / (4 * 2 * 3 * 2))


@pytest.mark.parametrize("mix_by", ["tokens", "documents"])
def test_passes_are_those_of_the_run(mix_by):
    """A run of 400 steps reads each source as often as was said."""
    figures = data_figures(recipe(400, mix_by), sources(*LENGTHS), pipelines=2)
    shares = [SourceShare(len(some), weight) for some, weight in zip(LENGTHS, WEIGHTS, strict=True)]
    plan = WindowPlan(
        np.concatenate(LENGTHS), rows=6, segments=4, segment_length=10, seed=0, sources=shares, mix_by=mix_by
    )
    windows = itertools.islice(plan, 800)
    begun = Counter(
        piece.document >= 4 for window in windows for row in window.pieces for piece in row if piece.offset == 0
    )
    for number, one in enumerate(figures.sources):
        assert one.share == WEIGHTS[number] / 4
        assert begun[bool(number)] / one.documents == pytest.approx(one.passes, rel=0.02)


def test_depths_that_change_count_on_average():
    changing = recipe(100)
    changing.depths = DepthSchedule({0: 2, 50: 4})
    assert data_figures(changing, sources(LENGTHS[0]), 1).sources[0].passes == pytest.approx(100 * 3 * 6 / 14)


def test_the_lines():
    header, first, second, whole, cache = data_lines(data_figures(recipe(), sources(*LENGTHS), pipelines=1))[-5:]
    assert header.split()[:2] == ["source", "files"] and header.endswith("passes")
    assert first.split()[:5] == ["part", "[0]", "4", "121", "1"] and "75.0%" in first
    assert second.split()[:5] == ["part", "[1]", "1", "40", "120"] and "70.0%" in second and "25.0%" in second
    assert whole == "one pass     44 documents, 241 tokens in about 2.2 optimizer steps; the run has 50"
    assert cache == "token cache  0 bytes in cache"


def test_large_numbers_and_long_names_are_not_cut_off():
    name, segments = "a-data-set-with-a-long-name/train-*.parquet", [1, 20, 300, 123456]
    one = SourceFigures(name, 100, 12345678, 123456789012, segments, 0.1, 1.0, 1000.5, 0.03)
    lines = data_lines(DataFigures([one], "documents", 10.0, 20, 30, "cache"))
    assert "\u2026" not in "".join(lines) and all(len(line) <= 120 for line in lines)
    assert "123,456,789,012" in lines[2] and name == "".join(line.split()[0] for line in lines[2:-2])


def test_the_share_in_the_loss():
    """A column only where a source has tokens that do not count."""
    with_answers = sources(*LENGTHS)
    columns = {"input_ids": [[0] * 4] * 2, "length": [4] * 2, "weights": [[0.0, 0, 0, 1], [0, 0, 0.5, 1]]}
    with_answers[0] = ReadSource(with_answers[0].source, SourceTokens(Dataset.from_dict(columns), 1, ()))
    figures = data_figures(recipe(), with_answers, pipelines=1)
    assert [one.in_loss for one in figures.sources] == [3 / 8, 1]
    text = "\n".join(data_lines(figures))
    assert "loss" in text and "37.5%" in text and "100.0%" in text
    assert "loss" not in "\n".join(data_lines(data_figures(recipe(), sources(*LENGTHS), pipelines=1)))


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e15, "3,000.0 TB")]
)
def test_sizes(number, text):
    assert size(number) == text
