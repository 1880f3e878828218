"""The loss: cross-entropy summed over labels, so that any split of the work over ranks gives the same total."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hmt_ds.memory.segments import IGNORED

LOGITS = 2**27  # that stand at a time: 4,096 positions of a vocabulary of 32k, 1,024 of one of 128k


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy in nats of each position, in float32 or wider: ``[positions]``.

    Args:
        logits: ``[positions, vocabulary]``.
        labels: ``[positions]`` token ids; -100 gives a loss of 0.
    """
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
    """Sum the cross-entropy of each row in nats, computing logits for a chunk of positions at a time to save memory.

    Args:
        head: maps hidden states ``[.., dim]`` to logits ``[.., vocabulary]``.
        hidden: ``[batch, tokens, dim]``.
        labels: ``[batch, tokens]``, already shifted; positions labelled -100 have a loss of 0.
        vocabulary: number of logits per position.
        at_a_time: number of logits in memory at a time; the backward pass computes them again.
        weights: ``[batch, tokens]``, factors of the positions' losses; None: all 1.
        cross_entropy: loss of each position from logits and labels; may be compiled.
        backward_follows: the backward pass comes next: if one chunk is enough, its logits are kept for it.
        by_token: return the loss of each token instead of a sum per row.

    Returns:
        ``[batch]``, or ``[batch, tokens]`` by token, at least float32. Divide by the summed weights of the labels of
        the whole global batch, not of one rank.
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
    """Return ``weight`` times the sum of the losses: the scalar for the backward pass.

    If a loss is not finite, neither is any gradient: the gradient norm alone can then decide whether to skip the step.

    Args:
        losses: summed cross-entropies in nats, of any shape.
        weight: the factor, usually 1 / labels of the global batch.
    """
    total = losses.sum()
    return total * (weight + 0 * total.detach())
