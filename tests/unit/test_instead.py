"""Segments read once more with other memories than their row's own, against readings put together by hand."""

from typing import Any

import pytest
import torch
from tiny import L, cut, document, empty_state, make_model, make_window
from torch import Tensor

from hmt_ds.memory import HMT, Boundaries, MemoryState, SegmentOutput, Window, read_window
from hmt_ds.memory.boundaries import BoundariesInstead, Instead

MODELS: list[dict[str, Any]] = [
    {"mode": "hmt"},
    {"mode": "rmt"},
    {"mode": "hmt", "interface": "adapted", "recalled_memories": 1},
    {"mode": "rmt", "interface": "adapted"},
]
EVERY: list[Instead] = ["swapped", "none"]


def three_documents() -> Window:
    """Rows 0 and 2 are in one document all the time; row 1 begins its second one at segment 2."""
    torch.manual_seed(2)
    lengths = [[5 * L], [2 * L, 3 * L], [4 * L + 2]]
    return make_window([[document(length) for length in row] for row in lengths])


@torch.no_grad()
def read(model: HMT, window: Window, state: MemoryState | None = None, **options: Any) -> list[SegmentOutput]:
    state = state or empty_state(model, len(window.input_ids))
    return [output for output, _ in read_window(model, model.settings, window, state, **options)]


def segment_loss(model: HMT, window: Window, n: int, memories: Tensor, valid: Tensor) -> Tensor:
    """The loss of segment n of all rows with these memories, with its own query."""
    before = torch.zeros(len(window.starts), model.settings.sensory_tokens).long()
    query = model(window.summary(n, n + 1, before, model.settings)) if model.settings.summarises else None
    segment = window.segment(n, before, model.settings)
    return model(segment, memories, valid, query=query).loss


def test_a_neighbour_is_another_row_that_goes_on():
    window = three_documents()
    neighbours = [window.neighbours(n).tolist() for n in range(5)]
    assert neighbours == [[0, 1, 2], [1, 2, 0], [2, 1, 0], [1, 2, 0], [1, 2, 0]]


@pytest.mark.parametrize("changes", MODELS, ids=repr)
def test_own_memories_are_not_affected(changes):
    """The memory state comes from the pass with the row's own memories."""
    model, window = make_model(**changes), three_documents()
    for plain, more in zip(read(model, window), read(model, window, instead=EVERY), strict=True):
        assert torch.equal(plain.loss, more.loss) and torch.equal(plain.memory, more.memory)
        assert plain.loss_instead is None and more.loss_instead is not None
        assert more.loss_instead.shape == (2, 3)


@torch.no_grad()
@pytest.mark.parametrize("changes", MODELS, ids=repr)
def test_swapped_memories_are_another_rows(changes):
    model, window = make_model(**changes), three_documents()
    state, different = empty_state(model, 3), []
    for n, (output, after) in enumerate(read_window(model, model.settings, window, state, instead=["swapped"])):
        rows = window.neighbours(n)
        before = state.forget(window.starts[:, n])
        expected = segment_loss(model, window, n, before.memories[rows], before.valid[rows])
        torch.testing.assert_close(output.loss_instead[0], expected)
        apart = (output.loss_instead[0] - output.loss).abs() > 1e-4
        assert torch.equal(apart, rows != torch.arange(3))  # a swap of all rows that have a partner, and of no others
        different.append(apart)
        state = after
    assert sum(int(apart.sum()) for apart in different) == 11


@torch.no_grad()
@pytest.mark.parametrize("changes", MODELS, ids=repr)
def test_without_memories_is_a_reading_with_an_empty_memory(changes):
    """The learned initial prompt in every segment, and the sensory tokens as ever."""
    model, window = make_model(**changes), three_documents()
    empty = empty_state(model, 3)
    for n, output in enumerate(read(model, window, instead=["none"])):
        expected = segment_loss(model, window, n, empty.memories, empty.valid)
        torch.testing.assert_close(output.loss_instead[0], expected)
        assert torch.equal((expected - output.loss).abs() > 1e-4, ~window.starts[:, n])


@pytest.mark.parametrize("changes", [*MODELS, {"mode": "backbone"}], ids=repr)
def test_losses_by_token(changes):
    """They sum to the row's loss, and each is that of its own token."""
    model, window = make_model(**changes), three_documents()
    instead = [] if changes["mode"] == "backbone" else EVERY
    plain = read(model, window, instead=instead, with_logits=True)
    for n, (whole, each) in enumerate(zip(plain, read(model, window, instead=instead, by_token=True), strict=True)):
        assert each.loss.shape == (3, L)
        torch.testing.assert_close(each.loss.sum(dim=1), whole.loss)
        logits, labels = whole.logits, window.labels[:, n]
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        torch.testing.assert_close(each.loss, expected)
        if instead:
            torch.testing.assert_close(each.loss_instead.sum(dim=2), whole.loss_instead)


@torch.no_grad()
@pytest.mark.parametrize("which", EVERY)
def test_boundaries_of_micro_batches_are_handed_over(which):
    """A row whose neighbour is in another micro-batch (pipeline) gets the memories that one batch would give it."""
    model, window = make_model(), three_documents()
    whole = Boundaries(empty_state(model, 3), window, 3)
    for n, output in enumerate(read(model, window)):
        whole.write(n, output.memory)
    rows = [slice(0, 2), slice(2, 3)]
    parts = []
    for part in rows:
        one = Window(*(getattr(window, name)[part] for name in ("input_ids", "labels", "lengths", "starts")))
        parts.append(Boundaries(empty_state(model, len(one.starts)), one, 3))
        parts[-1].memories = whole.memories[part]
    for n in range(len(window)):
        memories, valid = whole.before(n)
        partners = window.neighbours(n)
        for part in rows:
            found, found_valid = BoundariesInstead(which, parts, window, part).before(n)
            if which == "swapped":
                assert torch.equal(found, memories[partners][part]) and torch.equal(found_valid, valid[partners][part])
            else:
                assert not found_valid.any() and found.isfinite().all()


def test_a_window_that_goes_on():
    """Rows of a later window have their neighbours' memories from the window before."""
    model, window = make_model(), three_documents()
    *_, expected = read(model, window, instead=EVERY)
    with torch.no_grad():
        *_, (_, state) = read_window(model, model.settings, cut(window, 0, 4), empty_state(model, 3))
    (found,) = read(model, cut(window, 4), state, instead=EVERY)
    torch.testing.assert_close(found.loss_instead, expected.loss_instead)
