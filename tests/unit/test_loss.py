"""The loss computed in chunks equals the whole loss, and only one chunk's logits exist at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hmt_ds.memory import IGNORED
from hmt_ds.memory.loss import LOGITS, cross_entropy, row_losses, weighted

ROWS, T, D, V = 3, 10, 4, 11
CHUNKS = [1, 7, 10, 15, 30, 1000]  # positions, of 30: some divide rows, some all, and some nothing


def draw(dtype: torch.dtype) -> tuple[nn.Linear, Tensor, Tensor]:
    """A head, hidden states, and labels: some ignored anywhere, and all of the last row."""
    head, hidden = nn.Linear(D, V).to(dtype), torch.randn(ROWS, T, D, dtype=dtype, requires_grad=True)
    labels = torch.randint(V, (ROWS, T)).masked_fill(torch.rand(ROWS, T) < 0.3, IGNORED)
    labels[-1] = IGNORED
    return head, hidden, labels


def plain(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """All logits at a time, in float32 at least."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(dim=1)


def gradients(losses: Tensor, head: nn.Linear, hidden: Tensor) -> list[Tensor]:
    """Of hidden states, weight and bias; every row counts differently, so that rows cannot be confused."""
    factors = torch.arange(1, ROWS + 1, dtype=losses.dtype)
    return list(torch.autograd.grad((losses * factors).sum(), [hidden, head.weight, head.bias]))


@pytest.mark.parametrize("positions", CHUNKS)
def test_chunks_are_the_plain_loss(positions):
    head, hidden, labels = draw(torch.float64)
    expected = plain(head, hidden, labels)
    losses = row_losses(head, hidden, labels, V, at_a_time=positions * V)
    assert losses.dtype == torch.float64 and losses[-1] == 0
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradients(losses, head, hidden), gradients(expected, head, hidden))


@pytest.mark.parametrize("positions", CHUNKS)
def test_bfloat16(positions):
    """Losses are summed in float32. The head's gradient is rounded after every chunk, and no worse than that."""
    head, hidden, labels = draw(torch.bfloat16)
    expected = plain(head, hidden, labels)
    losses = row_losses(head, hidden, labels, V, at_a_time=positions * V)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    found, wanted = gradients(losses, head, hidden), gradients(expected, head, hidden)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16 and (one - other).norm() < 0.02 * other.norm()


def test_weights():
    """Weights are factors of single positions, in the sum of a row and by token."""
    head, hidden, labels = draw(torch.float64)
    weights = torch.rand(ROWS, T)
    each = row_losses(head, hidden, labels, V, by_token=True)
    found = row_losses(head, hidden, labels, V, at_a_time=7 * V, weights=weights)
    torch.testing.assert_close(found, (each * weights).sum(dim=1))
    torch.testing.assert_close(row_losses(head, hidden, labels, V, by_token=True, weights=weights), each * weights)
    torch.testing.assert_close(gradients(found, head, hidden), gradients((each * weights).sum(dim=1), head, hidden))


def test_compiled():
    """The compiled loss equals the eager one, in chunks of two sizes."""
    head, hidden, labels = draw(torch.float64)
    expected = plain(head, hidden, labels)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = row_losses(head, hidden, labels, V, at_a_time=7 * V, cross_entropy=torch.compile(cross_entropy))
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradients(losses, head, hidden), gradients(expected, head, hidden))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_rows_sums():
    """A head that knows nothing: every label costs log v, and ignored ones cost nothing."""
    head = nn.Linear(D, V)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    labels = torch.full((ROWS, T), IGNORED)
    for row, count in enumerate([T, 3, 0]):
        labels[row, T - count :] = 5
    losses = row_losses(head, torch.randn(ROWS, T, D), labels, V, at_a_time=4 * V)
    torch.testing.assert_close(losses, math.log(V) * torch.tensor([T, 3.0, 0]))


@pytest.mark.parametrize(("positions", "times"), [(ROWS * T, 1), (ROWS * T - 1, 2)])
def test_one_chunk_is_not_computed_again(positions, times):
    """A single chunk's logits are kept for its backward pass; those of several chunks would exist together."""
    head, hidden, labels = draw(torch.float64)
    expected, seen = plain(head, hidden, labels), []

    def record(chunk: Tensor) -> Tensor:
        seen.append(len(chunk))
        return head(chunk)

    losses = row_losses(record, hidden, labels, V, positions * V, backward_follows=True)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradients(losses, head, hidden), gradients(expected, head, hidden))
    assert sum(seen) == times * ROWS * T


@pytest.mark.parametrize("at_a_time", [1, V, 4 * V, 4 * V + V - 1, LOGITS])
@pytest.mark.parametrize("training", [False, True])
def test_the_head_sees_a_chunk_at_a_time(at_a_time, training):
    """The head computes each position once, and in training once more, because the backward pass recomputes logits."""
    head, hidden, labels = draw(torch.float64)
    seen: list[int] = []

    def record(chunk: Tensor) -> Tensor:
        seen.append(len(chunk))
        return head(chunk)

    with torch.set_grad_enabled(training):
        losses = row_losses(record, hidden, labels, V, at_a_time)
    assert sum(seen) == ROWS * T
    if training:
        losses.sum().backward()
        assert sum(seen) == 2 * ROWS * T
    assert max(seen) == min(ROWS * T, max(1, at_a_time // V))


class Logits(TorchDispatchMode):
    """Watches the lifetime of tensors as wide as the vocabulary, from any forward or backward operation.

    Attributes:
        largest: number of elements of the largest one.
        peak: largest number of elements in all that existed at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.standing: dict[int, tuple[StorageWeakRef, int]] = {}
        self.largest = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            # not the head's own weight, [v, d], nor its transpose
            if isinstance(x, Tensor) and x.dim() > 1 and x.shape[-1] == V and x.shape[-2] != D:
                storage = StorageWeakRef(x.untyped_storage())
                self.standing[storage.cdata] = (storage, x.numel())
                self.largest = max(self.largest, x.numel())
        self.standing = {key: kept for key, kept in self.standing.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.standing.values()))
        return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_no_more_logits_stand(dtype):
    """Neither in one tensor nor from chunk to chunk: the graph between the passes holds none at all."""
    _, hidden, labels = draw(dtype)
    head = nn.Linear(D, V, bias=False, dtype=dtype)  # a bias' gradient is as wide as the vocabulary
    with Logits() as one_chunk:
        row_losses(head, hidden[:, :1], labels[:, :1], V, at_a_time=3 * V).sum().backward()
    with Logits() as logits:
        losses = row_losses(head, hidden, labels, V, at_a_time=3 * V)
        assert all(storage.expired() for storage, _ in logits.standing.values())
        losses.sum().backward()
    assert logits.largest == 3 * V
    assert logits.peak == one_chunk.peak
    with Logits() as all_at_once:
        plain(head, hidden, labels)
    assert all_at_once.largest == ROWS * T * V, "the watcher is blind"


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_leaves_no_gradient_finite(loss):
    """Also if the graph does not pass the loss on; gradients of a finite loss are only weighted."""
    losses = torch.tensor([2.0, 3.0], requires_grad=True)
    assert torch.equal(torch.autograd.grad(weighted(losses, 0.5), losses)[0], torch.full((2,), 0.5))
    broken = losses + torch.tensor([loss, 0.0])
    assert not torch.autograd.grad(weighted(broken, 0.5), losses)[0].isfinite().any()
