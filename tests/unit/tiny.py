"""Tiny models and windows, in float64 so that wrong gradients stand out from rounding."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hmt_ds.backbones import build_model
from hmt_ds.memory import (
    HMT,
    IGNORED,
    MemorySettings,
    MemoryState,
    Window,
    WindowTotals,
    backward_through_time,
    read_window,
)

VOCABULARY = 37
L = 6
# wide initial weights: with the usual 0.02 the memory hardly matters, and a test of it could not fail
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "initializer_range": 0.3,
}


def make_settings(**changes: Any) -> MemorySettings:
    """Three memories are cached, so that windows of four segments overflow the cache."""
    usual = MemorySettings(segment_length=L, recall_dim=8, sensory_tokens=2, cached_memories=3)
    return replace(usual, **changes)


def make_model(backbone: dict[str, Any] = LLAMA, **changes: Any) -> HMT:
    """A random model in evaluation mode; the same arguments give the same weights."""
    torch.manual_seed(1)
    return HMT(build_model(backbone, dtype=torch.float64), make_settings(**changes)).double().eval()


def empty_state(model: HMT, batch: int) -> MemoryState:
    """The state in front of documents."""
    tokens, sensory = model.settings.memory_tokens, model.settings.sensory_tokens
    return MemoryState.empty(
        batch, tokens, model.backbone.dim, sensory, dtype=torch.float64, device=torch.device("cpu")
    )


def document(length: int) -> Tensor:
    """Random ids; 0 is kept for pads."""
    return torch.randint(1, VOCABULARY, (length,))


def make_window(rows: list[list[Tensor]], pad: int = 0) -> Window:
    """Rows of documents, one after the other, each from a new segment on; shorter rows end in empty segments."""
    segments = max(sum(-(-len(ids) // L) for ids in row) for row in rows)
    ids = torch.full((len(rows), segments, L), pad)
    labels = torch.full_like(ids, IGNORED)
    lengths = torch.zeros(len(rows), segments, dtype=torch.long)
    starts = torch.ones(len(rows), segments, dtype=torch.bool)
    for b, row in enumerate(rows):
        n = 0
        for one in row:
            for begin in range(0, len(one), L):
                fresh, following = one[begin : begin + L], one[begin + 1 : begin + L + 1]
                ids[b, n, : len(fresh)], labels[b, n, : len(following)] = fresh, following
                lengths[b, n], starts[b, n] = len(fresh), begin == 0
                n += 1
    return Window(ids, labels, lengths, starts)


def cut(window: Window, start: int, end: int | None = None) -> Window:
    """Some segments of a window."""
    part = slice(start, end)
    return Window(window.input_ids[:, part], window.labels[:, part], window.lengths[:, part], window.starts[:, part])


def one_graph(model: HMT, windows: Window | Iterable[Window], state: MemoryState) -> tuple[Tensor, MemoryState]:
    """The summed loss by plain autograd, with its gradients added to the model; truncated between windows."""
    losses = []
    for window in [windows] if isinstance(windows, Window) else windows:
        outputs, states = zip(*read_window(model, model.settings, window, state.detach()), strict=True)
        losses += [output.loss.sum() for output in outputs]
        state = states[-1]
    loss = torch.stack(losses).sum()
    loss.backward()
    return loss.detach(), state.detach()


def segment_wise(
    model: HMT, window: Window, state: MemoryState, weight: float = 1.0, **options: Any
) -> tuple[WindowTotals, MemoryState]:
    """Our way, with plain autograd as the engine."""
    options = {"backward": Tensor.backward, **options}
    return backward_through_time(model, model.settings, window, state, weight=weight, **options)


def assert_same_state(one: MemoryState, other: MemoryState, tolerance: float) -> None:
    """Assert that two memory states are equal where they can be read; values of invalid memories do not count."""
    assert not one.memories.requires_grad
    torch.testing.assert_close(one.memories[one.valid], other.memories[other.valid], rtol=tolerance, atol=tolerance)
    assert torch.equal(one.valid, other.valid) and torch.equal(one.tail, other.tail)


def take_gradients(model: HMT) -> dict[str, Tensor]:
    """The gradient of every parameter, zeros where there is none; the model's own are cleared."""
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    return found


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative difference of any two gradients; those that vanish in exact arithmetic are rounding."""
    floor = 1e-6 * max(float(gradient.norm()) for gradient in other.values())
    assert one.keys() == other.keys() and floor > 0
    return max(float((one[name] - other[name]).norm()) / max(float(other[name].norm()), floor) for name in other)
