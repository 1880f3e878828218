"""Documents that share segments: losses and gradients are those of documents read alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_backbones import CONFIGS
from test_bptt import KINDS, TOLERANCE
from tiny import (
    IGNORED,
    LLAMA,
    L,
    distance,
    document,
    empty_state,
    make_model,
    one_graph,
    segment_wise,
    take_gradients,
)
from torch import Tensor

from hmt_ds.backbones import FAMILIES, BackboneError, build_model, check_packing
from hmt_ds.data import Batch, Packing, WindowLoader, WindowPlan
from hmt_ds.data.describe import padding_share, segments_of
from hmt_ds.memory import HMT, MemorySettings, RecomputePlan, Window, read_window

WIDE = 5 * L  # tokens of a segment: room for several documents


def gap_of(settings: MemorySettings) -> int:
    """What is read in front of a first segment."""
    return settings.sink_tokens + settings.prompt_tokens(settings.mode)


def window_of(rows: list[list[list[Tensor]]], gap: int) -> Window:
    """Rows of segments of pieces; a piece is a tensor of ids, and one that is in two segments is given twice.

    Args:
        rows: per segment its pieces; a document that goes on is a pair of tensors that is split over two segments.
        gap: columns in front of a document that begins within a segment.
    """
    shape = (len(rows), max(map(len, rows)), WIDE)
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    parts, lengths = torch.zeros(shape, dtype=torch.long), torch.zeros(shape[:2], dtype=torch.long)
    starts = torch.ones(shape[:2], dtype=torch.bool)
    for b, row in enumerate(rows):
        goes_on = None
        for n, pieces in enumerate(row):
            starts[b, n], at = goes_on is None, 0
            for number, piece in enumerate(pieces):
                whole, begin, end = piece if isinstance(piece, tuple) else (piece, 0, len(piece))
                if number:
                    parts[b, n, at:], at = number, at + gap
                ids[b, n, at : at + end - begin] = whole[begin:end]
                following = whole[begin + 1 : end + 1]
                labels[b, n, at : at + len(following)] = following
                at += end - begin
                goes_on = whole if end < len(whole) else None
            assert at <= WIDE
            lengths[b, n] = at
    return Window(ids, labels, lengths, starts, parts=parts)


Pieces = list[tuple[Tensor, int, int]]  # of one document, each in a segment of its own


def packed_and_alone(gap: int) -> tuple[Window, list[Pieces]]:
    """A window of three rows, and its documents, split at the same places."""
    a, b, c, d, e, f, g = (document(n) for n in (WIDE + 3, 4, 2, 2 * WIDE + 3, 5, WIDE - 2, WIDE + 9))
    rest = WIDE - (3 + 4 + 2 * gap)  # of the first row's second segment, where d begins
    a_pieces = [(a, 0, WIDE), (a, WIDE, len(a))]
    d_pieces = [(d, 0, rest), (d, rest, rest + WIDE), (d, rest + WIDE, len(d))]
    rest = WIDE - (len(e) + gap)
    g_pieces = [(g, 0, rest), (g, rest, len(g))]
    rows = [
        [a_pieces[:1], [a_pieces[1], b, d_pieces[0]], d_pieces[1:2], [d_pieces[2], c]],
        [[e, c], [f], [b, e, c], []],
        [[e, g_pieces[0]], g_pieces[1:], [], []],
    ]
    whole = [[(one, 0, len(one))] for one in (b, c, e, c, f, b, e, c, e)]
    return window_of(rows, gap), [a_pieces, d_pieces, g_pieces, *whole]


def read_alone(model: HMT, pieces: Pieces) -> Tensor:
    """The summed loss of one document, segment by segment in one graph."""
    state, k, losses = empty_state(model, 1), model.settings.sensory_tokens, []
    for number, (ids, begin, end) in enumerate(pieces):
        one = window_of([[[(ids, begin, end)]]], 0)
        one = replace(one, starts=one.starts & (number == 0), parts=None)
        ((output, state),) = read_window(model, model.settings, one, state)
        losses.append(output.loss.sum())
        state = replace(state, tail=ids[None, end - k : end])  # the first segment may be short
    return torch.stack(losses).sum()


def make(changes: dict, backbone=LLAMA) -> HMT:
    return make_model(backbone, **({"segment_length": WIDE} | changes))


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_gradients_are_those_of_documents_alone(changes):
    model = make(changes)
    torch.manual_seed(3)
    packed, documents = packed_and_alone(gap_of(model.settings))
    expected_loss = torch.stack([read_alone(model, pieces) for pieces in documents]).sum()
    expected_loss.backward()
    expected = take_gradients(model)
    for plan in (RecomputePlan(), RecomputePlan(kept_segments=2, summary_segments=2)):
        totals, _ = segment_wise(model, packed, empty_state(model, 3), plan=plan)
        torch.testing.assert_close(totals.loss, expected_loss.detach())
        assert distance(take_gradients(model), expected) < TOLERANCE
    loss, _ = one_graph(model, packed, empty_state(model, 3))
    torch.testing.assert_close(loss, expected_loss.detach())
    assert distance(take_gradients(model), expected) < TOLERANCE


def with_gradients(model: HMT, windows: list[Window]) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of consecutive windows, and its gradients."""
    state, losses = empty_state(model, len(windows[0].lengths)), []
    for window in windows:
        totals, state = segment_wise(model, window, state)
        losses.append(totals.loss)
    return torch.stack(losses).sum(), take_gradients(model)


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("changes", [{}, {"mode": "rmt"}, {"interface": "adapted", "recalled_memories": 2}])
def test_documents_go_on_in_the_next_window(changes, at):
    """The state behind a window is that of each row's last document; losses are those of one window."""
    model = make(changes)
    torch.manual_seed(3)
    packed, _ = packed_and_alone(gap_of(model.settings))
    first, second = (
        replace(packed, **{name: x[:, part] for name, x in vars(packed).items() if x is not None})
        for part in (slice(0, at), slice(at, None))
    )
    loss, _ = with_gradients(model, [first, second])
    torch.testing.assert_close(loss, with_gradients(model, [packed])[0])
    expected, _ = one_graph(model, [first, second], empty_state(model, 3))
    truncated = take_gradients(model)
    loss, found = with_gradients(model, [first, second])
    torch.testing.assert_close(loss, expected)
    assert distance(found, truncated) < TOLERANCE


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_backbones_keep_documents_apart_or_are_refused(config):
    """Positions count from a document's beginning, and no position attends to another document."""
    backbone = make_model(config).backbone
    try:
        check_packing(backbone.config)
    except BackboneError as error:
        assert "does not keep documents in one row apart" in str(error)
        assert config["model_type"] not in FAMILIES.keys() - {"opt"}
        return
    embeddings = torch.randn(2, 9, backbone.dim, dtype=torch.float64)
    parts = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])
    packed = backbone.decode(embeddings, None, parts)
    for row, cuts in enumerate(([0, 4, 7, 9], [0, 1, 9])):
        alone = [backbone.decode(embeddings[row : row + 1, a:b]) for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(packed[row : row + 1], torch.cat(alone, dim=1), rtol=1e-9, atol=1e-9)


def test_recurrent_models_are_refused():
    for kind in ("mamba", "rwkv"):
        said = f"^{kind} does not keep documents in one row apart: set data.pack to false$"
        with pytest.raises(BackboneError, match=said):
            check_packing(build_model(CONFIGS[kind], dtype=None).config)


LENGTHS = [3, 40, 7, 1, 25, 2, 9, 70, 30, 4, 4, 4, 11, 29, 1, 1, 64]
PACKING = Packing(gap=2, least=8)


@pytest.fixture(scope="module")
def tokens() -> Dataset:
    """Documents whose tokens say where they are: 1000 * document + position + 1; weights of some of them."""
    ids = [[1000 * number + place + 1 for place in range(length)] for number, length in enumerate(LENGTHS)]
    weights = [[place % 3 / 2 for place in range(length)] for length in LENGTHS]
    return Dataset.from_dict({"input_ids": ids, "length": LENGTHS, "weights": weights})


def batches(tokens: Dataset, **options) -> list[Batch]:
    usual = {"segments": 2, "segment_length": 32, "seed": 5, "rank": 0, "world_size": 1, "batch_size": 2, "epochs": 1}
    return list(WindowLoader(tokens, packing=PACKING, **(usual | options)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_token_is_read_once_with_its_label(tokens, shuffle):
    read, labels, segments = [], [], 0
    for batch in batches(tokens, shuffle=shuffle):
        for row, n in np.ndindex(batch.lengths.shape):
            ids, length = batch.input_ids[row, n], int(batch.lengths[row, n])
            parts = batch.parts[row, n] if batch.parts is not None else torch.zeros_like(ids)
            owners = [int(batch.documents[row, n])]
            owners += batch.others[row, n].tolist() if batch.others is not None else []
            segments += bool(length)
            assert (ids[length:] == 0).all() and parts.diff().min() >= 0
            for part in range(int(parts[-1]) + 1 if length else 0):
                columns = (parts == part).nonzero().flatten()
                columns = columns[columns < length][PACKING.gap if part else 0 :]
                assert not ids[(parts == part) & (ids == 0)].any()
                read += ids[columns].tolist()
                assert (ids[columns] // 1000 == owners[part]).all()
                following, has_label = batch.labels[row, n, columns], batch.labels[row, n, columns] >= 0
                labels += following[has_label].tolist()
                assert (following[has_label] == ids[columns][has_label] + 1).all()
                weight = batch.weights[row, n, columns]
                assert torch.equal(weight[has_label], (following[has_label] - 1) % 1000 % 3 / 2)
                goes_on = columns[-1] == 31 and ids[31] % 1000 < LENGTHS[owners[part]]
                assert not goes_on or part == parts[-1]
                assert not (goes_on and part) or len(columns) >= PACKING.least
    every = [1000 * number + place + 1 for number, length in enumerate(LENGTHS) for place in range(length)]
    assert sorted(read) == every
    assert sorted(labels) == [one for one in every if one % 1000 > 1 and (one - 1) % 1000 % 3]
    if not shuffle:
        assert segments < sum(-(-length // 32) for length in LENGTHS) - 5


def test_resumed_after_each_window_and_on_two_ranks(tokens):
    whole = batches(tokens)
    for at, batch in enumerate(whole):
        rest = batches(tokens, state=batch.position)
        assert [b.position for b in rest] == [b.position for b in whole[at + 1 :]]
        assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(rest, whole[at + 1 :], strict=True))
    ranks = [batches(tokens, rank=rank, world_size=2, batch_size=1) for rank in (0, 1)]
    for one, first, second in zip(whole, *ranks, strict=True):
        assert torch.equal(one.input_ids, torch.cat([first.input_ids, second.input_ids]))


@pytest.mark.parametrize("seed", range(5))
def test_the_share_of_padding_is_that_of_the_plan(seed):
    lengths = np.random.default_rng(seed).integers(1, 100, 300)
    plan = WindowPlan(
        np.random.default_rng(0).permutation(lengths),
        rows=1, segments=1, segment_length=32, seed=0, shuffle=False, epochs=1, packing=PACKING,
    )  # fmt: skip
    assert segments_of(lengths, 32, PACKING) == len(list(plan))
    assert padding_share(lengths, 32, PACKING) < padding_share(lengths, 32)


def test_the_gap_and_the_least_part_of_a_memory():
    settings = MemorySettings(segment_length=100, sensory_tokens=30, memory_tokens=2, interface="paper")
    assert Packing.of(settings) == Packing(2, 30)
    adapted = replace(settings, interface="adapted", sensory_tokens=10, recalled_memories=3)
    assert Packing.of(adapted) == Packing(1 + 8, 25)
