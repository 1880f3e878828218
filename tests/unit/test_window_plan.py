"""The order of pieces: coverage, queue, epochs, resume."""

import itertools
import json
from collections import defaultdict

import numpy as np
import pytest

from hmt_ds.data import DataError, Piece, PlannedWindow, WindowPlan, WindowPlanState

LENGTHS = [70, 3, 10, 41, 20, 1, 33, 7, 9, 11]  # 1 to 7 segments of 10, exact multiples among them


def plan(lengths=LENGTHS, **changes) -> WindowPlan:
    return WindowPlan(lengths, **{"rows": 4, "segments": 3, "segment_length": 10, "seed": 1, **changes})


def in_time_order(windows: list[PlannedWindow]) -> list[tuple[int, Piece]]:
    """All pieces with their row: segment by segment, and within a segment row by row."""
    return [
        (row, pieces[segment])
        for window in windows
        for segment in range(len(window.pieces[0]))
        for row, pieces in enumerate(window.pieces)
        if pieces[segment] is not None
    ]


def first_pieces(windows: list[PlannedWindow]) -> list[int]:
    return [piece.document for _, piece in in_time_order(windows) if piece.offset == 0]


def test_rows_change_documents_in_the_next_segment():
    windows = list(plan([25, 10, 5, 12, 30], rows=2, shuffle=False, epochs=1))
    assert [window.pieces for window in windows] == [
        [
            [Piece(0, 0, 10), Piece(0, 10, 10), Piece(0, 20, 5)],
            [Piece(1, 0, 10), Piece(2, 0, 5), Piece(3, 0, 10)],
        ],
        [
            [Piece(4, 0, 10), Piece(4, 10, 10), Piece(4, 20, 10)],
            [Piece(3, 10, 2), None, None],
        ],
    ]
    assert windows[0].state == WindowPlanState(0, 4, (None, (3, 10)))
    assert windows[1].state == WindowPlanState(1, 0, (None, None))


@pytest.mark.parametrize("rows", [1, 3, 4, 16])
@pytest.mark.parametrize("segments", [1, 3, 8])
def test_one_epoch_covers_each_document_once_in_order_in_one_row(rows, segments):
    windows = list(plan(rows=rows, segments=segments, epochs=1))
    seen = defaultdict(list)
    for row, piece in in_time_order(windows):
        assert 0 < piece.length <= 10
        seen[piece.document].append((row, piece))
    assert sorted(seen) == list(range(len(LENGTHS)))
    for document, parts in seen.items():
        assert len({row for row, _ in parts}) == 1
        tokens = [piece.offset + i for _, piece in parts for i in range(piece.length)]
        assert tokens == list(range(LENGTHS[document]))
        assert len(parts) == -(-LENGTHS[document] // 10)  # only the last segment is short, none is empty


def test_a_document_stays_in_consecutive_segments_and_no_row_idles_while_documents_wait():
    windows = list(plan(epochs=1))
    rows = [list(itertools.chain.from_iterable(window.pieces[row] for window in windows)) for row in range(4)]
    for row in rows:
        pieces = [piece for piece in row if piece is not None]
        assert row[: len(pieces)] == pieces  # empty segments only at the end
        for piece, following in itertools.pairwise(pieces):
            ends = piece.offset + piece.length == LENGTHS[piece.document]
            assert following.offset == 0 if ends else following.offset == piece.offset + piece.length
    last_start = max(segment for row in rows for segment, piece in enumerate(row) if piece and piece.offset == 0)
    assert all(piece is not None for row in rows for piece in row[: last_start + 1])


def test_the_queue_is_the_seeded_permutation_of_each_epoch():
    windows = list(itertools.islice(plan(seed=5), 40))
    queue = first_pieces(windows)
    epochs = [queue[start : start + 10] for start in range(0, 30, 10)]
    assert epochs == [np.random.default_rng([5, epoch]).permutation(10).tolist() for epoch in range(3)]
    assert epochs[0] != epochs[1]


def test_natural_order_repeats():
    queue = first_pieces(list(itertools.islice(plan(shuffle=False), 40)))
    assert queue[:30] == [*range(10)] * 3


def test_seeds_differ_and_the_same_seed_repeats():
    one, again, other = (list(plan(seed=seed, epochs=2)) for seed in (1, 1, 2))
    assert one == again
    assert first_pieces(one) != first_pieces(other)


def test_two_epochs_follow_without_a_gap_and_then_end():
    windows = list(plan(epochs=2, rows=2))
    assert sorted(first_pieces(windows)) == sorted([*range(10)] * 2)
    assert windows[-1].state == WindowPlanState(2, 0, (None, None))
    assert any(piece is not None for row in windows[-1].pieces for piece in row)


@pytest.mark.parametrize("epochs", [1, 2, None])
def test_resume_after_every_window_equals_the_uninterrupted_plan(epochs):
    whole = list(itertools.islice(plan(epochs=epochs), 30))
    for index, window in enumerate(whole):
        state = WindowPlanState.from_dict(json.loads(json.dumps(window.state.to_dict())))
        assert state == window.state
        rest = itertools.islice(plan(epochs=epochs, state=state), 30 - index - 1)
        assert list(rest) == whole[index + 1 :]


def test_documents_left_out_change_nothing_else():
    windows = list(plan(epochs=2, left_out={0, 9, 4}))
    assert first_pieces(windows) == [d for d in first_pieces(list(plan(epochs=2, rows=1))) if d not in {0, 9, 4}]
    assert all(any(piece for row in window.pieces for piece in row) for window in windows)
    for index, window in enumerate(windows):
        assert list(plan(epochs=2, left_out={0, 9, 4}, state=window.state)) == windows[index + 1 :]


def test_a_row_in_a_document_that_is_left_out_takes_the_next():
    state = WindowPlanState(0, 4, (None, (3, 10)))
    (window,) = plan([25, 10, 5, 12, 30], rows=2, shuffle=False, epochs=1, state=state, left_out=[3])
    assert window.pieces == [[Piece(4, 0, 10), Piece(4, 10, 10), Piece(4, 20, 10)], [None] * 3]
    state = WindowPlanState(0, 4, (None, None))
    assert not list(plan([25, 10, 5, 12, 30], rows=2, shuffle=False, epochs=1, state=state, left_out=[4]))


def test_more_rows_than_documents():
    windows = list(plan([5, 15], rows=4, shuffle=False, epochs=1))
    assert len(windows) == 1
    assert windows[0].pieces[1:] == [[Piece(1, 0, 10), Piece(1, 10, 5), None], [None] * 3, [None] * 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": []}, "but 0 of 0 have none"),
        ({"lengths": [3, 0]}, "but 1 of 2 have none"),
        ({"left_out": range(10)}, "all 10 documents are left out"),
        ({"state": WindowPlanState(0, 0, (None,) * 3)}, r"position is of 3 rows, but the run has 4"),
        ({"state": WindowPlanState(0, 10, (None,) * 4)}, r"at least 11 documents, but there are 10"),
        ({"state": WindowPlanState(0, 1, (None, (12, 0), None, None))}, r"at least 13 documents, but there are 10"),
        ({"state": WindowPlanState(0, 1, (None, (1, 3), None, None))}, r"token 3 of document 1, which has 3 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        plan(**changes)
