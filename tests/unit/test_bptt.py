"""Segment by segment gives the gradients of one graph; rows, documents and pads keep to themselves."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import (
    GPT2,
    L,
    assert_same_state,
    cut,
    distance,
    document,
    empty_state,
    make_model,
    make_window,
    one_graph,
    segment_wise,
    take_gradients,
)
from torch import Tensor

from hmt_ds.memory import (
    HMT,
    IGNORED,
    MemoryState,
    RecomputePlan,
    Segment,
    SegmentOutput,
    Summary,
    Window,
    read_window,
)
from hmt_ds.memory.boundaries import Boundaries
from hmt_ds.memory.bptt import totals_of

TOLERANCE = 1e-6
KINDS = {
    "hmt": {},
    "hmt, two tokens": {"memory_tokens": 2},
    "hmt, all cached": {"cached_memories": 30},
    "hmt, no sensory tokens": {"sensory_tokens": 0},
    "rmt": {"mode": "rmt"},
    "rmt, two tokens": {"mode": "rmt", "memory_tokens": 2},
    "adapted hmt": {"interface": "adapted", "recalled_memories": 2},
    "adapted hmt, two tokens": {"interface": "adapted", "memory_tokens": 2, "cached_memories": 4},
    "adapted rmt, two tokens": {"interface": "adapted", "mode": "rmt", "memory_tokens": 2},
    "adapted rmt, last three": {"interface": "adapted", "mode": "rmt", "last_memories": 3},
    "adapted hmt, last two": {"interface": "adapted", "last_memories": 2},
    "adapted backbone": {"interface": "adapted", "mode": "backbone"},
    "backbone": {"mode": "backbone"},
    "backbone, two tokens": {"mode": "backbone", "memory_tokens": 2},
}
each_kind = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())


def mixed_window() -> Window:
    """Seven segments: one long document, borders in the middle of the window, short ends, rows that end early."""
    lengths = [[7 * L], [2 * L + 2, 4 * L], [3 * L - 2, 1], [1, L, 3 * L + 3], [2]]
    return make_window([[document(n) for n in row] for row in lengths])


def gradients_of(model: HMT, *windows: Window) -> dict[str, Tensor]:
    """The sum of the gradients of windows computed independently of each other."""
    for window in windows:
        segment_wise(model, window, empty_state(model, len(window.lengths)))
    return take_gradients(model)


def row_losses(model: HMT, window: Window) -> Tensor:
    """Each row's summed loss."""
    state = empty_state(model, len(window.lengths))
    with torch.no_grad():
        return torch.stack([output.loss for output, _ in read_window(model, model.settings, window, state)]).sum(dim=0)


@each_kind
def test_gradients_of_one_graph(changes):
    model, window = make_model(**changes), mixed_window()
    loss, expected_state = one_graph(model, window, empty_state(model, 5))
    expected = take_gradients(model)
    totals, state = segment_wise(model, window, empty_state(model, 5))
    torch.testing.assert_close(totals.loss, loss)
    assert distance(take_gradients(model), expected) < TOLERANCE
    assert_same_state(state, expected_state, TOLERANCE)


@each_kind
def test_labels_of_answers_alone_and_weights(changes):
    """Gradients are those of the weighted losses of tokens in one graph; a segment without labels gives no NaN."""
    model, window = make_model(**changes), mixed_window()
    weights = torch.randint(0, 4, window.labels.shape) / 4 * (window.labels >= 0)
    weights[:, 1] = 0
    outputs = read_window(model, model.settings, window, empty_state(model, 5), by_token=True)
    each = torch.stack([output.loss for output, _ in outputs], dim=1)
    for counted in (weights, weights.ceil()):
        masked = replace(window, labels=window.labels.where(counted > 0, IGNORED))
        (each * counted).sum().backward(retain_graph=True)
        expected = take_gradients(model)
        counts_one = bool((counted == counted.ceil()).all())
        masked = masked if counts_one else replace(masked, weights=counted)
        totals, _ = segment_wise(model, masked, empty_state(model, 5))
        torch.testing.assert_close(totals.loss, (each.detach() * counted).sum())
        assert distance(take_gradients(model), expected) < TOLERANCE
        assert torch.equal(torch.stack([masked.label_weights(n) for n in range(len(masked))], dim=1), counted)


@each_kind
@pytest.mark.parametrize("at", [1, 4])
def test_state_carried_over_two_windows(changes, at):
    """Documents go on in a second window, and the cache with them; gradients stop at the window's border."""
    model, window = make_model(**changes), mixed_window()
    windows = cut(window, 0, at), cut(window, at)
    loss, _ = one_graph(model, windows, empty_state(model, 5))
    expected = take_gradients(model)
    first, state = segment_wise(model, windows[0], empty_state(model, 5))
    second, _ = segment_wise(model, windows[1], state)
    torch.testing.assert_close(first.loss + second.loss, loss)
    assert distance(take_gradients(model), expected) < TOLERANCE
    # what was carried is worth as much as if there had been one window: no loss changes, whatever is truncated
    torch.testing.assert_close(loss, row_losses(model, window).sum())


def test_truncation_in_a_long_window():
    """Truncation equals one long graph in which memories from before the boundary are detached by hand."""
    model, window, at = make_model(), mixed_window(), 3
    calls = iter(range(len(window)))

    def read(part: Segment | Summary, *cached: Tensor, **options: Any) -> Any:
        if isinstance(part, Summary):
            return model(part)
        n, (memories, valid) = next(calls), cached
        older = max(0, memories.shape[1] - (n - at)) if n >= at else 0
        memories = torch.cat([memories[:, :older].detach(), memories[:, older:]], dim=1)
        return model(part, memories, valid, **options)

    outputs = [output for output, _ in read_window(read, model.settings, window, empty_state(model, 5))]
    torch.stack([output.loss.sum() for output in outputs]).sum().backward()
    expected = take_gradients(model)
    _, state = segment_wise(model, cut(window, 0, at), empty_state(model, 5))
    segment_wise(model, cut(window, at), state)
    assert distance(take_gradients(model), expected) < TOLERANCE


@each_kind
def test_weight_and_loss_scale(changes):
    """An fp16 engine multiplies every scalar by 1024: every gradient comes out times 1024, those of memories too."""
    model, window = make_model(**changes), mixed_window()
    segment_wise(model, window, empty_state(model, 5))
    expected = take_gradients(model)
    segment_wise(
        model,
        window,
        empty_state(model, 5),
        weight=0.25,
        loss_scale=1024.0,
        backward=lambda scalar: (scalar * 1024).backward(),
    )
    scaled = {name: gradient / 256 for name, gradient in take_gradients(model).items()}
    assert distance(scaled, expected) < 1e-12


@pytest.mark.parametrize("mode", ["hmt", "rmt", "backbone"])
@pytest.mark.parametrize(
    "plan", [RecomputePlan(), RecomputePlan(2, 2), RecomputePlan(1, 3, 1), RecomputePlan(3, 1, 2)], ids=str
)
def test_dropout_draws_the_same_both_times(mode, plan):
    """A recomputed segment draws the dropout masks of its first pass, and later draws are not affected.

    Both plans have equal batches of summaries, because masks are drawn per batch.
    """
    gpt2 = GPT2 | {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    model, window = make_model(gpt2, mode=mode).train(), make_window([[document(4 * L)], [document(L), document(9)]])

    def draw(plan: RecomputePlan, seed: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        torch.manual_seed(seed)
        totals, _ = segment_wise(model, window, empty_state(model, 2), plan=plan)
        return totals.loss, take_gradients(model), torch.rand(3)

    once = replace(RecomputePlan.keep_all(len(window)), summary_segments=plan.summary_segments)
    loss, expected, drawn = draw(once, seed=7)
    assert not torch.allclose(draw(once, seed=8)[0], loss), "no dropout: this would test nothing"
    found_loss, found, found_drawn = draw(plan, seed=7)
    torch.testing.assert_close(found_loss, loss)
    assert distance(found, expected) < TOLERANCE
    assert torch.equal(found_drawn, drawn)


@each_kind
def test_rows_read_alone(changes):
    """A batch of different lengths is its rows, one by one."""
    model, window = make_model(**changes), mixed_window()
    rows = [
        Window(window.input_ids[[b]], window.labels[[b]], window.lengths[[b]], window.starts[[b]]) for b in range(5)
    ]
    torch.testing.assert_close(row_losses(model, window), torch.cat([row_losses(model, row) for row in rows]))
    assert distance(gradients_of(model, window), gradients_of(model, *rows)) < TOLERANCE


@each_kind
def test_documents_read_alone(changes):
    """Losses and gradients of a document do not depend on the previous document in its row."""
    documents = [document(2 * L + 1), document(3 * L), document(2), document(L)]
    model, together = make_model(**changes), make_window([documents[:2], documents[2:]])
    apart = make_window([[ids] for ids in documents])
    alone = row_losses(model, apart)
    torch.testing.assert_close(row_losses(model, together), alone.view(2, 2).sum(dim=1))
    assert distance(gradients_of(model, together), gradients_of(model, apart)) < TOLERANCE


@each_kind
def test_pads_never_matter(changes):
    """Other ids in the place of pads change nothing, for attention looks back only."""
    model, window = make_model(**changes), mixed_window()
    pads = torch.arange(L) >= window.lengths[:, :, None]
    other = replace(window, input_ids=torch.where(pads, torch.randint_like(window.input_ids, 1, 9), window.input_ids))
    assert pads.any() and not torch.equal(other.input_ids, window.input_ids)
    torch.testing.assert_close(row_losses(model, other), row_losses(model, window))
    assert distance(gradients_of(model, other), gradients_of(model, window)) < TOLERANCE


def test_frozen_backbone():
    """Gradients reach the memory modules through a backbone that takes none."""
    model, window = make_model(), mixed_window()
    expected = {n: g for n, g in gradients_of(model, window).items() if not n.startswith("backbone.")}
    model.backbone.requires_grad_(False)
    found = gradients_of(model, window)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert distance({name: found[name] for name in expected}, expected) < TOLERANCE


def test_recall_distance():
    """The newest memory lies one segment back; rows that recalled nothing do not count."""
    nothing = torch.zeros(2, 0, 1)
    output = SegmentOutput(torch.ones(2), nothing, nothing, torch.tensor([[0.25, 0, 0.75], [0, 0, 0]]), torch.zeros(2))
    assert [float(total) for total in totals_of(output)] == [2, 0.25 * 3 + 0.75 * 1, 1, 0]


def test_totals_of_a_window():
    """With one cached memory, each segment after a document's first recalls from one segment back."""
    model, window = make_model(cached_memories=1), make_window([[document(3 * L)], [document(L), document(2 * L)]])
    totals, _ = segment_wise(model, window, empty_state(model, 2))
    assert totals.recalls == 3
    torch.testing.assert_close(totals.recall_distance, torch.tensor(3.0))


def test_gradients_of_memories_are_summed_in_float32():
    """In bfloat16 256 + 1 is 256: many small gradients to one memory would be lost."""
    state = MemoryState.empty(1, 1, 1, 0, dtype=torch.bfloat16, device=torch.device("cpu"))
    borders = Boundaries(state, make_window([[document(2 * L)]]), keep=1)
    for gradient in (256, 1):
        borders.push(1, torch.full((1, 1, 1, 1), gradient, dtype=torch.bfloat16), scale=1.0)
    assert float(borders.pull(0, torch.ones(1, 1, 1, dtype=torch.bfloat16))) == 257
