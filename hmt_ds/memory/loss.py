"""The loss: summed cross-entropy, so that any split of the work gives the same total.

Shapes: b batch, t fresh tokens, d embedding width, v vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hmt_ds.memory.segments import IGNORED

LOGITS = 2**27  # that stand at a time: 4,096 positions of a vocabulary of 32k, 1,024 of one of 128k


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each position: logits ``[p, v]``, labels ``[p]`` -> ``[p]``, taken to float32 at least."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nn.functional.cross_entropy(precise, labels, ignore_index=IGNORED, reduction="none")


def row_losses(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    vocabulary: int,
    at_a_time: int = LOGITS,
    *,
    weights: Tensor | None = None,
    cross_entropy: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    backward_follows: bool = False,
    by_token: bool = False,
) -> Tensor:
    """Cross-entropy in nats, summed per row. Logits stand for a chunk of positions at a time, in both directions.

    They are computed once more for the backward pass, unless it follows at once and one chunk is all.

    Args:
        head: ``[.., d]`` -> logits ``[.., v]``.
        hidden: ``[b, t, d]``.
        labels: ``[b, t]``, already shifted; ``IGNORED`` ones count nothing.
        vocabulary: v.
        at_a_time: how many logits stand at a time.
        weights: ``[b, t]``, factors of the positions' losses; None for ones.
        cross_entropy: of each position, :func:`cross_entropy` or its compiled form.
        backward_follows: with nothing in between that takes memory.
        by_token: leave the sum out.

    Returns:
        ``[b]``, or ``[b, t]`` by token, at least float32. Divide by the labels' weights of the whole global batch,
        never by a rank's own.
    """
    positions = max(1, at_a_time // vocabulary)
    parts = list(zip(hidden.flatten(0, 1).split(positions), labels.flatten().split(positions), strict=True))

    def token_losses(hidden: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(head(hidden), labels)

    if backward_follows and len(parts) == 1:
        losses = [token_losses(*parts[0])]
    else:
        losses = [checkpoint(token_losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    each = torch.cat(losses).view(labels.shape)
    if weights is not None:
        each = each * weights
    return each if by_token else each.sum(dim=1)


def weighted(losses: Tensor, weight: float) -> Tensor:
    """``weight`` times the summed losses, the scalar to go backward from.

    A loss that is not finite leaves no gradient finite, whatever the graph would make of it: so the gradients' norm is
    all that decides whether a step is taken.
    """
    total = losses.sum()
    return total * (weight + 0 * total.detach())
