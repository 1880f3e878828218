"""The loss: summed cross-entropy, so that any split of the work gives the same total."""

import torch
from torch import Tensor, nn

from hmt_ds.memory.segments import IGNORED


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, summed per row.

    Args:
        logits: ``[b, t, v]``, taken to float32 at least.
        labels: ``[b, t]``, already shifted; ``IGNORED`` ones count nothing.

    Returns:
        ``[b]``. Divide by the labels of the whole global batch, never by a rank's own.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    losses = nn.functional.cross_entropy(precise, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape).sum(dim=1)
