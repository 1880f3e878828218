"""Memory recall: attention of the segment's summary over the cached memories (paper, section 3.2, equation 3).

Shapes: b batch, c cached memories, m memory tokens, d embedding width, r recall width.
"""

import math

import torch
from torch import Tensor, nn

from hmt_ds.memory.settings import MemorySettings

LARGE = 4096  # from this width on, HMT-pytorch divides by the width itself while it trains


class Recall(nn.Module):
    """P_n = softmax(q W_q (M W_k)^T / sqrt(r)) M, without a value projection.

    Memories are projected anew for every segment: N rows of W_k are thousandths of a segment's arithmetic, and so
    nothing but the memories themselves has to be kept for the backward pass.
    """

    def __init__(self, dim: int, settings: MemorySettings):
        super().__init__()
        width = settings.recall_width(dim)
        self.query = nn.Linear(dim, width, bias=False)
        self.key = nn.Linear(dim, width, bias=False)
        by_width = settings.recall_scale == "reference" and min(dim, width) >= LARGE
        self.scale = 1 / width if by_width else 1 / math.sqrt(width)

    def forward(self, query: Tensor, memories: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Recall what the query asks for.

        Args:
            query: ``[b, m, d]``, q_n, the summary of the segment.
            memories: ``[b, c, m, d]``, oldest first. c may be 0: then the result is zero, and every weight still
                takes part in the graph (DeepSpeed mishandles weights that miss a micro-step).
            valid: ``[b, c]`` bool. A row without any valid memory gets a finite result that means nothing.

        Returns:
            The prompt P_n ``[b, m, d]`` and the weight of each memory ``[b, c]`` (float32, detached, summing to 1).
        """
        batch, cached, tokens, dim = memories.shape
        flat = memories.reshape(batch, cached * tokens, dim)
        scores = self.query(query) @ self.key(flat).transpose(1, 2) * self.scale
        # the smallest finite number rather than -inf: a row with nothing valid must not turn into nan
        hidden = ~valid.repeat_interleave(tokens, dim=1)[:, None]
        # in float32 whatever the model's type, as the reference does
        weights = scores.float().masked_fill(hidden, torch.finfo(torch.float32).min).softmax(dim=-1)
        share = weights.detach().mean(dim=1).unflatten(1, (cached, tokens)).sum(dim=2)
        return weights.to(flat.dtype) @ flat, share
