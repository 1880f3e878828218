"""From documents to segments, on ids small enough to write the answers out. L = 4, k = 2, j = 2."""

from dataclasses import fields, replace

import pytest
import torch
from tiny import make_settings

from hmt_ds.memory import IGNORED, Segment, Summary, Window, split_document

X = IGNORED
SETTINGS = make_settings(segment_length=4, sensory_tokens=2, summary_fraction=0.5)
NOTHING = torch.tensor([[90, 91]])  # the ids before a window, where the row starts anew: must never be read


def ids(*tokens: int) -> torch.Tensor:
    return torch.tensor([tokens])


def two_rows() -> Window:
    """Row 0 reads 11 to 17, a document of seven; row 1 a document of three, then one of four."""
    return Window(
        input_ids=torch.tensor([[[11, 12, 13, 14], [15, 16, 17, 0]], [[21, 22, 23, 0], [31, 32, 33, 34]]]),
        labels=torch.tensor([[[12, 13, 14, 15], [16, 17, X, X]], [[22, 23, X, X], [32, 33, 34, X]]]),
        lengths=torch.tensor([[4, 3], [3, 4]]),
        starts=torch.tensor([[True, False], [True, True]]),
    )


def assert_part(part: Segment | Summary, **expected: object) -> None:
    for name, value in expected.items():
        found = getattr(part, name)
        assert (found.tolist() if isinstance(found, torch.Tensor) else found) == value, name


def test_split_keeps_labels_at_borders():
    window = split_document(ids(11, 12, 13, 14, 15, 16, 17), 4)
    assert window.input_ids.tolist() == [[[11, 12, 13, 14], [15, 16, 17, 0]]]
    assert window.labels.tolist() == [[[12, 13, 14, 15], [16, 17, X, X]]]
    assert window.lengths.tolist() == [[4, 3]]
    assert window.starts.tolist() == [[True, False]]
    assert len(window) == 2


@pytest.mark.parametrize(("tokens", "lengths"), [(1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4])])
def test_split_lengths(tokens, lengths):
    window = split_document(torch.ones(3, tokens, dtype=torch.long), 4)
    assert window.lengths.tolist() == [lengths] * 3
    assert (window.labels != X).sum() == 3 * (tokens - 1)


def test_split_goes_on():
    """The rest of a document has sensory tokens from its first segment on."""
    window = split_document(ids(13, 14, 15, 16, 17), 4, goes_on=True)
    assert window.starts.tolist() == [[False, False]]
    assert_part(window.segment(0, ids(11, 12), SETTINGS), tokens=[[11, 12, 13, 14, 15, 16]], lengths=[6])


def test_split_mask():
    seen = torch.tensor([[False, True, True, True, True]])
    assert split_document(ids(1, 2, 3, 4, 5), 4, seen).mask.tolist() == [
        [[False, True, True, True], [True, False, False, False]]
    ]


def test_first_segment():
    """As wide as other segments, though no row has sensory tokens; nothing from before the window is read."""
    segment = two_rows().segment(0, NOTHING.expand(2, -1), SETTINGS)
    assert_part(
        segment,
        tokens=[[11, 12, 13, 14, 0, 0], [21, 22, 23, 0, 0, 0]],
        lengths=[4, 3],
        fresh=[[0, 1, 2, 3]] * 2,
        labels=[[12, 13, 14, 15], [22, 23, X, X]],
        mask=None,
    )


def test_rows_without_sensory_tokens_move_to_the_left():
    """Row 0 continues a document, row 1 starts one: both are padded at the end, row 1 without its last document."""
    assert_part(
        two_rows().segment(1, NOTHING.expand(2, -1), SETTINGS),
        tokens=[[13, 14, 15, 16, 17, 0], [31, 32, 33, 34, 0, 0]],
        lengths=[5, 4],
        fresh=[[2, 3, 4, 5], [0, 1, 2, 3]],
        labels=[[16, 17, X, X], [32, 33, 34, X]],
    )


def test_all_rows_go_on():
    """Sensory tokens bear no labels: the segment before has them."""
    window = split_document(torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]]), 4)
    assert_part(
        window.segment(1, NOTHING.expand(2, -1), SETTINGS),
        tokens=[[13, 14, 15, 0, 0, 0], [23, 24, 25, 0, 0, 0]],
        lengths=[3, 3],
        fresh=[[2, 3, 4, 5]] * 2,
        labels=[[X] * 4] * 2,
    )


def test_fresh_columns_hold_the_fresh_ids():
    """``fresh`` finds a row's fresh tokens at any position, and their labels in the same order."""
    window = two_rows()
    for n in range(2):
        segment = window.segment(n, NOTHING.expand(2, -1), SETTINGS)
        assert torch.equal(segment.tokens.gather(1, segment.fresh), window.input_ids[:, n])
        assert torch.equal(segment.labels, window.labels[:, n])


def test_one_width():
    """All segments have one shape to compile, at the start of documents and later."""
    window = two_rows()
    segments = [window.segment(n, NOTHING.expand(2, -1), SETTINGS) for n in range(2)]
    assert {segment.tokens.shape for segment in segments} == {(2, 6)}
    assert {segment.fresh.shape for segment in segments} == {(2, 4)}


def test_summary_of_some_segments():
    """Segments of one row are adjacent, so that a batch of them can be reshaped into rows."""
    assert_part(
        two_rows().summary(0, 2, NOTHING, SETTINGS),
        tokens=[[11, 12], [15, 16], [21, 22], [31, 32]],
        lengths=[2, 2, 2, 2],
        mask=None,
    )


def test_summary_of_one_short_segment():
    window = split_document(torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]]), 4)
    assert_part(window.summary(1, 2, NOTHING, SETTINGS), tokens=[[15, 0], [25, 0]], lengths=[1, 1])


def test_summary_is_no_longer_than_a_segment():
    """A last window may be cut narrower than L."""
    window = split_document(ids(11, 12, 13), 3)
    settings = make_settings(segment_length=8, summary_fraction=1.0)
    assert_part(window.summary(0, 1, NOTHING, settings), tokens=[[11, 12, 13]], lengths=[3])


def test_masks_move_with_their_tokens():
    """Sensory tokens are always seen; a hidden id stays hidden where its row is moved."""
    window = two_rows()
    mask = torch.ones_like(window.input_ids, dtype=torch.bool)
    mask[1, 1, 0] = False
    window = replace(window, mask=mask)
    segment = window.segment(1, NOTHING.expand(2, -1), SETTINGS)
    assert_part(segment, mask=[[True] * 6, [False, True, True, True, True, True]])
    assert_part(window.summary(0, 2, NOTHING, SETTINGS), mask=[[True, True]] * 3 + [[False, True]])


def test_empty_segment():
    """A row that has nothing left to read: no length, no label, no sensory tokens."""
    full = two_rows()
    nothing = torch.zeros(2, 1, 4, dtype=torch.long)
    nothing[0] = torch.tensor([18, 19, 20, 21])
    window = Window(
        torch.cat([full.input_ids[:, :1], nothing], dim=1),
        torch.cat([full.labels[:, :1], torch.full_like(nothing, X)], dim=1),
        lengths=torch.tensor([[4, 4], [3, 0]]),
        starts=torch.tensor([[True, False], [True, True]]),
    )
    segment = window.segment(1, NOTHING.expand(2, -1), SETTINGS)
    assert_part(segment, lengths=[6, 0], labels=[[X] * 4] * 2)
    assert segment.tokens[0].tolist() == [13, 14, 18, 19, 20, 21]
    assert_part(window.summary(1, 2, NOTHING, SETTINGS), lengths=[2, 0])


def test_tail():
    window = two_rows()
    assert window.tail(0, 2).tolist() == [[13, 14], [23, 0]]
    assert window.tail(1, 3).tolist() == [[16, 17, 0], [32, 33, 34]]
    assert window.tail(0, 0).shape == (2, 0)


def test_no_sensory_tokens():
    segment = two_rows().segment(1, torch.zeros(2, 0, dtype=torch.long), make_settings(sensory_tokens=0))
    assert_part(segment, tokens=[[15, 16, 17, 0], [31, 32, 33, 34]], lengths=[3, 4], fresh=[[0, 1, 2, 3]] * 2)


@pytest.mark.parametrize("masked", [False, True])
def test_to_another_device(masked):
    """Windows and segments are moved with all their tensors; None stays None."""
    window = two_rows()
    window = replace(window, mask=window.input_ids > 0) if masked else window
    for part in (window, window.segment(1, NOTHING.expand(2, -1), SETTINGS), window.summary(0, 2, NOTHING, SETTINGS)):
        moved = part.to("meta")
        assert type(moved) is type(part)
        for field in fields(part):
            here, there = getattr(part, field.name), getattr(moved, field.name)
            assert there is None if here is None else there.is_meta and there.shape == here.shape
        assert (moved.mask is None) is not masked
