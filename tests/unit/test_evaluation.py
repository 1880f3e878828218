"""Held-out losses by document, segment and position, against plain sums over single documents; figures and files."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import L, cut, document, empty_state, make_model, make_window
from torch import Tensor

from hmt_ds.evaluation.bootstrap import DRAWS, Interval, mean_intervals, resampled_sums
from hmt_ds.evaluation.figures import Row, figures_of, segments_needed
from hmt_ds.evaluation.files import Evaluation, HeldOutData, evaluation_file, write_evaluation
from hmt_ds.evaluation.losses import DocumentLosses
from hmt_ds.evaluation.read_documents import document_losses
from hmt_ds.memory import HMT, IGNORED, MemorySettings, MemoryState, Window, read_window

DATA = HeldOutData("texts/held_out.txt", "ab" * 32, 2, 1000, "400 tokens, vocabulary abc")


class Reader:
    """The attributes of a reader that the evaluation uses, in one process."""

    device = torch.device("cpu")
    reports = True

    def __init__(self, model: HMT):
        self.model, self.settings = model, model.settings

    @torch.no_grad()
    def read(self, window: Window, state: MemoryState | None, **options: Any):
        state = state or empty_state(self.model, len(window.input_ids))
        yield from read_window(self.model, self.model.settings, window, state, **options)


LENGTHS = (5 * L + 2, 3, 4 * L, L, 6 * L + 1, 2 * L)
ROWS = [[0, 1, 3], [2, 4, 5], []]  # the documents of each row; the last row is empty


def held_out() -> tuple[list[Tensor], list[tuple[Window, Tensor]]]:
    """Documents of unequal length that share rows and windows, and three windows of them."""
    torch.manual_seed(3)
    documents = [document(length) for length in LENGTHS]
    whole = make_window([[documents[i] for i in row] for row in ROWS])
    numbers = torch.full(whole.starts.shape, -1)
    for row, chosen in enumerate(ROWS):
        spans = [i for i in chosen for _ in range(-(-LENGTHS[i] // L))]
        numbers[row, : len(spans)] = torch.tensor(spans, dtype=torch.long)
    return documents, [(cut(whole, a, a + 3), numbers[:, a : a + 3]) for a in range(0, len(whole), 3)]


def test_losses_are_those_of_single_documents():
    """None of the sharing of rows and windows may show, and segments that are too deep are left out."""
    model = make_model()
    documents, windows = held_out()
    found = document_losses(Reader(model), windows, len(documents), 6, ["swapped", "none"])  # type: ignore[arg-type]
    assert found.losses["own"].shape == (6, 6, L)  # as many parts as positions, for a segment this short
    for number, one in enumerate(documents):
        window = make_window([[one]])
        losses = torch.zeros(6, 2, L)
        with torch.no_grad():
            options: dict[str, Any] = {"instead": ["none"], "by_token": True}
            outputs = read_window(model, model.settings, window, empty_state(model, 1), **options)
            for n, (output, _) in enumerate(outputs):
                if n < 6:
                    losses[n] = torch.cat([output.loss, output.loss_instead[0]])
        scored = np.zeros((6, L))
        scored[: len(window)] = (window.labels[0] != IGNORED)[:6]
        for i, name in enumerate(("own", "none")):
            np.testing.assert_allclose(found.losses[name][number], losses[:, i], rtol=1e-6)
            np.testing.assert_array_equal(found.tokens[name][number], scored)
    swapped, own = found.tokens["swapped"], found.tokens["own"]
    partners = sum(int((~window.starts[:, n]).sum() > 1) for window, _ in windows for n in range(len(window)))
    assert partners > 3 and ((swapped == own) | (swapped == 0)).all()
    assert (swapped.sum(axis=2) > 0).sum() == 2 * partners and not swapped[:, 0].any()


def test_only_labels_count_as_much_as_they_weigh():
    """Losses are weighted sums of those of all tokens, and so are the numbers of tokens."""
    model, (documents, windows) = make_model(), held_out()
    everything = document_losses(Reader(model), windows, len(documents), 6)  # type: ignore[arg-type]
    weighted = []
    for window, numbers in windows:  # one factor per position of a segment, which is a part
        factors = (torch.arange(L) % 3 / 2).expand(window.labels.shape) * (window.labels >= 0)
        labels = window.labels.where(factors > 0, IGNORED)
        weighted.append((replace(window, labels=labels, weights=factors), numbers))
    found = document_losses(Reader(model), weighted, len(documents), 6)  # type: ignore[arg-type]
    factors = np.arange(L) % 3 / 2
    np.testing.assert_allclose(found.losses["own"], everything.losses["own"] * factors, rtol=1e-6)
    np.testing.assert_allclose(found.tokens["own"], everything.tokens["own"] * factors)


def test_a_batch_of_one_row_has_no_swapped_losses():
    documents = [document(3 * L)]
    windows = [(make_window([documents]), torch.zeros(1, 3, dtype=torch.long))]
    found = document_losses(Reader(make_model()), windows, 1, 4, ["swapped", "none"])  # type: ignore[arg-type]
    assert list(found.losses) == ["own", "none"]
    verdict = figures_of(found, [1, 2]).verdict
    assert verdict is not None and "one document gives no interval: name more, or cut it by data." in verdict


def test_a_long_segment_has_eight_parts():
    """Of 20 positions: 3, 2, 3, 2, 3, 2, 3, 2; the figures name where they begin."""

    class Ones:
        device, reports, settings = torch.device("cpu"), True, MemorySettings(segment_length=20, recall_dim=2)

        def read(self, window: Window, state: None, **options: Any) -> Iterator[tuple[Any, None]]:
            from types import SimpleNamespace

            yield from ((SimpleNamespace(loss=torch.ones(1, 20), loss_instead=None), None) for _ in range(2))

    ones = torch.ones(1, 2, 20, dtype=torch.long)
    window = Window(ones, ones, ones[:, :, 0] * 20, torch.tensor([[True, False]]))
    found = document_losses(Ones(), [(window, torch.zeros(1, 2).long())], 1, 2)  # type: ignore[arg-type]
    assert found.tokens["own"].tolist() == [[[3, 2, 3, 2, 3, 2, 3, 2]] * 2]
    positions = figures_of(found, [0, 1]).positions
    assert [(row.first, row.below) for row in positions][:4] == [(0, 3), (3, 5), (5, 8), (8, 10)]
    assert [row.tokens for row in positions] == [3, 2, 3, 2, 3, 2, 3, 2]  # of the second segment alone


def some_losses(documents: int = 40, cost: float = 0.1, noise: float = 0.02) -> DocumentLosses:
    """Documents of 6 segments of 2 parts of 50 tokens; without memory, ``cost`` more from the second segment on."""
    generator = np.random.default_rng(5)
    shape = (documents, 6, 2)
    tokens = np.full(shape, 50.0)
    own = tokens * generator.normal(3.0, 0.5, (documents, 1, 1)) * np.ones(shape)
    none = own + 50 * (cost + generator.normal(0, noise, shape)) * (np.arange(6) > 0)[:, None]
    partner = (np.arange(6) > 0)[:, None] & (np.arange(documents) > 0)[:, None, None]
    swapped = np.where(partner, own + 2 * (none - own), 0)
    losses, counts = {"own": own, "swapped": swapped, "none": none}, {"own": tokens, "none": tokens}
    return DocumentLosses(100, losses, counts | {"swapped": tokens * partner})


def test_rows_are_means_over_segments():
    found = some_losses()
    figures = figures_of(found, [1, 3])
    assert [(row.first, row.below, row.tokens) for row in figures.rows] == [(1, 3, 8000), (3, 6, 12000)]
    assert [(row.first, row.below) for row in figures.positions] == [(0, 50), (50, 100)]
    own, none, swapped = (found.losses[name] for name in ("own", "none", "swapped"))
    second = figures.rows[1]
    assert second.nats.mean == pytest.approx(own[:, 3:].sum() / 12000)
    assert second.perplexity == pytest.approx(math.exp(second.nats.mean))
    assert second.costs["none"].mean == pytest.approx((none - own)[:, 3:].sum() / 12000)
    assert second.costs["swapped"].mean == pytest.approx((swapped - own)[1:, 3:].sum() / 11700)
    assert figures.positions[1].costs["none"].mean == pytest.approx((none - own)[:, 1:, 1].sum() / 10000)
    # documents differ by half a nat, but each from itself by far less: the interval of a difference is paired
    assert second.nats.high - second.nats.low > 0.1 > 0.02 > second.costs["none"].high - second.costs["none"].low


@pytest.mark.parametrize(
    ("cost", "changes", "said"),
    [
        (0.1, {}, "the memory is used: another document's memory costs 0.2"),
        (0.004, {}, "the memory is ignored: another document's memory costs 0.0"),
        (-0.1, {}, "the memory is ignored: another document's memory costs -0."),
        (0.1, {"none": -1}, "the memory is read, but does not help: another document's memory costs 0.2"),
        (0.1, {"swapped": None}, "the memory helps: no memory costs 0.1"),
        (0.003, {"swapped": None}, "the memory does not help: no memory costs 0.00"),
    ],
)
def test_verdicts(cost, changes, said):
    found = some_losses(cost=cost)
    for name, factor in changes.items():
        if factor is None:
            del found.losses[name], found.tokens[name]
        else:
            found.losses[name][:] = found.losses["own"] + factor * (found.losses[name] - found.losses["own"])
    verdict = figures_of(found, [1, 3]).verdict
    assert verdict is not None and verdict.startswith(said)


def test_a_mean_that_is_large_and_uncertain_is_no_use():
    verdict = figures_of(some_losses(documents=5, cost=0.05, noise=2.0), [1]).verdict
    assert verdict is not None and "is ignored" in verdict


def test_without_other_memories_there_is_no_verdict():
    found = some_losses()
    for name in ("swapped", "none"):
        del found.losses[name], found.tokens[name]
    assert figures_of(found, [1]).verdict is None


def test_intervals_cover_the_truth():
    """Of 200 samples of 50 documents, 95% of the intervals hold the mean; a wrong level would show."""
    generator, covered = np.random.default_rng(1), 0
    counts = np.full((50, 200), 10.0)
    for low, high in ((row.low, row.high) for row in mean_intervals(generator.normal(20, 10, (50, 200)), counts)):
        covered += low <= 2.0 <= high
    assert 182 <= covered <= 197  # 190 expected, standard deviation 3; a bootstrap of 50 is a little too narrow


def test_an_interval_against_its_formula():
    """For means of many equal documents: mean +- 1.96 standard errors."""
    sums = np.random.default_rng(2).normal(30, 6, (400, 1))
    (found,) = mean_intervals(sums, np.full((400, 1), 10.0))
    error = sums.std() / 10 / math.sqrt(400)
    assert found.mean == pytest.approx(sums.mean() / 10)
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.06)
    assert found.mean - found.low == pytest.approx(1.96 * error, rel=0.06)


def test_documents_weigh_by_their_tokens():
    """The mean per token is a ratio of sums; in each draw as well."""
    (found,) = mean_intervals(np.array([[1000.0], [30.0]]), np.array([[1000.0], [10.0]]))
    assert found == pytest.approx((1030 / 1010, 1.0, 3.0))


def test_draws_are_whole_documents(monkeypatch):
    """Each draw has as many documents as there are, the same ones in every column, however many are drawn at once."""
    values = np.array([[1.0, 10], [1, 20], [1, 40]])
    drawn = resampled_sums(values)
    assert drawn.shape == (DRAWS, 2) and (drawn[:, 0] == 3).all()
    assert set(drawn[:, 1]) == {30, 40, 50, 60, 70, 80, 90, 100, 120}
    assert drawn[:, 1].mean() == pytest.approx(70, rel=0.01)
    monkeypatch.setattr("hmt_ds.evaluation.bootstrap.AT_A_TIME", 10)
    parts = resampled_sums(values)
    assert parts.shape == drawn.shape and parts[:, 1].mean() == pytest.approx(70, rel=0.01)


def test_figures_that_are_not_there():
    """One document gives no interval, no document no mean, and a loss that is not finite neither."""
    counts = np.array([[10.0, 0, 10, 10], [0, 0, 10, 10]])
    one, none, broken, right = mean_intervals(np.array([[20.0, 0, 20, 20], [0, 0, np.nan, 30]]), counts)
    assert one.mean == 2 and math.isnan(one.low) and math.isnan(one.high)
    assert all(map(math.isnan, none)) and all(map(math.isnan, broken))
    assert right == pytest.approx((2.5, 2, 3))
    assert Row(1, 2, 10, Interval(800.0, 800.0, 800.0), {}).perplexity == math.inf


@pytest.mark.parametrize(("read", "needed"), [([0], 1), ([0, 1], 2), ([1], 2), ([1, 2, 4], 8)])
def test_segments_needed(read, needed):
    assert segments_needed(read) == needed


def written(folder: Path, sha256: str = DATA.sha256, *, own: bool = True) -> Path:
    data = HeldOutData(DATA.source, sha256, DATA.documents, DATA.tokens, DATA.tokenizer)
    losses = some_losses()
    file = evaluation_file(folder, 7, sha256, own=own)
    write_evaluation(Evaluation(7, data, [1, 3], losses), file)
    return file


def test_other_data_never_overwrite_the_runs_own(tmp_path):
    own = written(tmp_path)
    before = own.read_bytes()
    other = written(tmp_path, "cd" * 32, own=False)
    assert (own.name, other.name) == ("step_000007.json", "step_000007_cdcdcdcd.json")
    assert own.read_bytes() == before
    # the recipe's file may have changed on disk since
    assert written(tmp_path, "ef" * 32, own=True).name == "step_000007_efefefef.json"
    # and the same tokens may have another name
    assert written(tmp_path, own=False) == own
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json"] * 3 + [".npz"] * 3


def test_a_file_of_an_earlier_version_is_replaced(tmp_path):
    (tmp_path / "step_000007.json").write_text('{"step": 7, "rows": []}')
    assert written(tmp_path).name == "step_000007.json"


def test_what_is_written(tmp_path):
    content = json.loads(written(tmp_path).read_text(), parse_constant=pytest.fail)  # no NaN
    assert content["data"] == {
        "source": "texts/held_out.txt",
        "sha256": DATA.sha256,
        "documents": 2,
        "tokens": 1000,
        "tokenizer": DATA.tokenizer,
    }
    row = content["rows"][0]
    assert list(row) == ["segments_read", "below", "tokens", "perplexity", "nats", "cost_swapped", "cost_none"]
    assert len(row["nats"]) == 3 and content["verdict"].startswith("the memory is used")
    assert content["positions"][1]["position"] == 50
    with np.load(tmp_path / "step_000007.npz") as arrays:
        expected = some_losses()
        for i, name in enumerate(arrays["readings"]):
            np.testing.assert_array_equal(arrays["losses"][i], expected.losses[name])
            np.testing.assert_array_equal(arrays["tokens"][i], expected.tokens[name])


def test_figures_without_tokens_are_null(tmp_path):
    losses = some_losses()
    write_evaluation(Evaluation(7, DATA, [1, 6], losses), tmp_path / "step_000007.json")
    content = json.loads((tmp_path / "step_000007.json").read_text(), parse_constant=pytest.fail)
    assert content["rows"][1]["nats"] == [None, None, None] and content["rows"][1]["perplexity"] is None
