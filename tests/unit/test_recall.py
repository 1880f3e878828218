"""Recall: attention over memories, and what holds where there is nothing to remember."""

import math

import pytest
import torch
from tiny import make_settings

from hmt_ds.memory import recall as module
from hmt_ds.memory.recall import Recall

D, R = 16, 8


def make_recall(dim: int = D, **changes) -> Recall:
    return Recall(dim, make_settings(**{"recall_dim": R, **changes})).double()


def draw(batch: int, cached: int, tokens: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A query and memories that take gradients."""
    query = torch.randn(batch, tokens, D, dtype=torch.float64, requires_grad=True)
    return query, torch.randn(batch, cached, tokens, D, dtype=torch.float64, requires_grad=True)


def test_invalid_memories_have_no_part():
    """A row recalls as if its invalid memories were not there, and sends them no gradient."""
    recall, (query, memories) = make_recall(), draw(2, 5)
    valid = torch.tensor([[False, True, False, True, True]] * 2)
    prompt, share = recall(query, memories, valid)
    expected, kept = recall(query, memories[:, [1, 3, 4]], torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(prompt, expected)
    torch.testing.assert_close(share[:, [1, 3, 4]], kept)
    prompt.sum().backward()
    assert memories.grad[:, [0, 2]].abs().max() == 0 and memories.grad[:, [1, 3, 4]].abs().min() > 0


@pytest.mark.parametrize("tokens", [1, 3])
def test_share_sums_to_one(tokens):
    recall, (query, memories) = make_recall(), draw(2, 4, tokens)
    valid = torch.tensor([[True] * 4, [False, False, True, True]])
    _, share = recall(query, memories, valid)
    assert share.shape == (2, 4) and share.dtype == torch.float32 and not share.requires_grad
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2))
    assert share[1, :2].tolist() == [0, 0]


def test_rows_without_valid_memory_stay_finite():
    """Their result is thrown away later, but a nan would spoil gradients all the same: 0 * nan is nan."""
    recall, (query, memories) = make_recall(), draw(2, 3)
    prompt, share = recall(query, memories, torch.tensor([[True] * 3, [False] * 3]))
    prompt.sum().backward()
    for tensor in (prompt, share, query.grad, memories.grad, recall.query.weight.grad, recall.key.weight.grad):
        assert tensor.isfinite().all()


def test_empty_cache_gives_zeros_and_keeps_every_weight_in_the_graph():
    recall, (query, memories) = make_recall(), draw(2, 0)
    prompt, share = recall(query, memories, torch.zeros(2, 0, dtype=torch.bool))
    assert prompt.shape == (2, 1, D) and prompt.abs().max() == 0 and share.shape == (2, 0)
    prompt.sum().backward()
    for weight in (recall.query.weight, recall.key.weight):
        assert weight.grad is not None and weight.grad.abs().max() == 0
    assert query.grad is not None


@pytest.mark.parametrize(
    ("scale", "dim", "recall_dim", "expected"),
    [
        ("paper", 64, 64, 1 / 8),
        ("paper", 4096, 4096, 1 / 64),
        ("reference", 4096, 4096, 1 / 4096),
        ("reference", 4095, 4096, 1 / 64),
        ("reference", 4096, 1024, 1 / 32),
    ],
)
def test_scale(scale, dim, recall_dim, expected):
    """HMT-pytorch divides by the width itself where both widths are at least 4096, while it trains."""
    with torch.device("meta"):
        assert math.isclose(Recall(dim, make_settings(recall_dim=recall_dim, recall_scale=scale)).scale, expected)


def test_scale_is_used(monkeypatch):
    """The reference's way, by hand, as if 8 were a large width."""
    monkeypatch.setattr(module, "LARGE", R)
    recall, (query, memories) = make_recall(recall_scale="reference"), draw(1, 4)
    scores = (query[0] @ recall.query.weight.T) @ (memories[0, :, 0] @ recall.key.weight.T).T / R
    prompt, share = recall(query, memories, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(share, scores.detach().float().softmax(dim=-1))
    torch.testing.assert_close(prompt[0], scores.softmax(dim=-1) @ memories[0, :, 0], rtol=1e-6, atol=1e-6)
