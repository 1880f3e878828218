"""From documents to segments, on ids small enough to write the answers out. L = 4, k = 2, j = 2."""

from dataclasses import replace

import pytest
import torch
from tiny import make_settings

from hmt_ds.memory import IGNORED, Segment, Window, split_document

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


def assert_segment(segment: Segment, **expected: object) -> None:
    for name, value in expected.items():
        found = getattr(segment, name)
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
    assert window.starts.tolist() == [[False, False]] and window.sensory == ("all", "all")
    assert_segment(window.segment(0, ids(11, 12), SETTINGS), tokens=[[11, 12, 13, 14, 15, 16]], lengths=[6])


def test_split_mask():
    seen = torch.tensor([[False, True, True, True, True]])
    assert split_document(ids(1, 2, 3, 4, 5), 4, seen).mask.tolist() == [
        [[False, True, True, True], [True, False, False, False]]
    ]


def test_first_segment():
    segment = two_rows().segment(0, NOTHING.expand(2, -1), SETTINGS)
    assert_segment(
        segment,
        tokens=[[11, 12, 13, 14], [21, 22, 23, 0]],
        labels=[[12, 13, 14, 15], [22, 23, X, X]],
        lengths=[4, 3],
        fresh_from=0,
        summary=[[11, 12], [21, 22]],
        summary_lengths=[2, 2],
        mask=None,
    )


def test_rows_without_sensory_tokens_move_to_the_left():
    """Row 0 goes on and row 1 starts anew in the same segment: pads end up behind both."""
    window = two_rows()
    assert window.sensory == ("none", "some")
    assert_segment(
        window.segment(1, NOTHING.expand(2, -1), SETTINGS),
        tokens=[[13, 14, 15, 16, 17, 0], [31, 32, 33, 34, 23, 0]],
        labels=[[X, X, 16, 17, X, X], [32, 33, 34, X, X, X]],
        lengths=[5, 4],
        fresh_from=0,
        summary=[[15, 16], [31, 32]],
    )


def test_all_rows_go_on():
    """The first k columns need no logits."""
    window = split_document(torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]]), 4)
    assert_segment(
        window.segment(1, NOTHING.expand(2, -1), SETTINGS),
        tokens=[[13, 14, 15, 0, 0, 0], [23, 24, 25, 0, 0, 0]],
        labels=[[X] * 6] * 2,
        lengths=[3, 3],
        fresh_from=2,
        summary=[[15, 0], [25, 0]],
        summary_lengths=[1, 1],
    )


def test_masks_move_with_their_tokens():
    """Sensory tokens are always seen; a hidden id stays hidden where its row is moved."""
    window = two_rows()
    mask = torch.ones_like(window.input_ids, dtype=torch.bool)
    mask[1, 1, 0] = False
    window = Window(window.input_ids, window.labels, window.lengths, window.starts, mask)
    assert_segment(
        window.segment(1, NOTHING.expand(2, -1), SETTINGS),
        mask=[[True] * 6, [False, True, True, True, True, True]],
        summary_mask=[[True, True], [False, True]],
    )


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
    assert_segment(segment, lengths=[6, 0], summary_lengths=[2, 0], labels=[[X] * 6] * 2)
    assert segment.tokens[0].tolist() == [13, 14, 18, 19, 20, 21]


def test_tail():
    window = two_rows()
    assert window.tail(0, 2).tolist() == [[13, 14], [23, 0]]
    assert window.tail(1, 3).tolist() == [[16, 17, 0], [32, 33, 34]]
    assert window.tail(0, 0).shape == (2, 0)


def test_no_sensory_tokens():
    segment = two_rows().segment(1, torch.zeros(2, 0, dtype=torch.long), make_settings(sensory_tokens=0))
    assert_segment(segment, tokens=[[15, 16, 17, 0], [31, 32, 33, 34]], lengths=[3, 4], fresh_from=0)


def test_to_another_device():
    """Nothing is asked of the other device: which rows have sensory tokens is known already."""
    window = two_rows()
    assert window.to("meta").mask is None
    window = replace(window, mask=window.input_ids > 0)
    moved = window.to("meta")
    for name in ("input_ids", "labels", "lengths", "starts", "mask"):
        assert getattr(moved, name).is_meta and getattr(moved, name).shape == getattr(window, name).shape
    assert moved.sensory == ("none", "some")
