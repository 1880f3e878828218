"""Memory recall: attention over the cached memories.

Shapes: b batch, c cached memories, m memory tokens, d embedding width, r recall width, p = (1 + recalled) m.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hmt_ds.memory.prompts import normalized
from hmt_ds.memory.settings import MemorySettings

LARGE = 4096  # from this width on, HMT-pytorch divides by the width itself while it trains
LOWEST = torch.finfo(torch.float32).min  # not -inf: a row without any valid memory must not turn into nan


class Recalled(NamedTuple):
    """What a segment recalls.

    Attributes:
        memory: ``[b, p, d]``. Rows that remember nothing have something finite there.
        share: ``[b, c]`` float32, the weight of each cached memory, detached.
        loss: ``[b]`` float32, cross-entropy of the weights against the memory that the data asks for; 0 where it asks
            for none.
    """

    memory: Tensor
    share: Tensor
    loss: Tensor


class Recall(nn.Module):
    """P_n = softmax(q W_q (M W_k)^T / sqrt(r)) M, without a value projection (paper, section 3.2, equation 3).

    Memories are projected again for every segment: N rows of W_k are thousandths of a segment's arithmetic, and so
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
        hidden = ~valid.repeat_interleave(tokens, dim=1)[:, None]
        # in float32 whatever the model's type, as the reference does
        weights = scores.float().masked_fill(hidden, LOWEST).softmax(dim=-1)
        share = weights.detach().mean(dim=1).unflatten(1, (cached, tokens)).sum(dim=2)
        return weights.to(flat.dtype) @ flat, share


class Selection(nn.Module):
    """The memories that a query asks for: those of largest weight, whole and side by side.

    Weights w are softmax(v_n W_q (u_i W_k)^T / sqrt(r) - recency * log(age_i)), with v and u the means of a query's and
    a memory's normalized embeddings. The age is 1 for the last memory: of several that answer, the newest is chosen,
    which content alone cannot tell. An average over many memories is nearly the same vector whatever the query, so none
    is taken. The choice gets its gradient from a factor w / stopgrad(w) on each chosen memory, which is 1, and from the
    recall's own loss.
    """

    def __init__(self, dim: int, settings: MemorySettings):
        super().__init__()
        width = settings.recall_width(dim)
        self.query = nn.Linear(dim, width, bias=False)
        self.key = nn.Linear(dim, width, bias=False)
        self.recency = nn.Parameter(torch.ones(1))
        self.scale, self.chosen = 1 / math.sqrt(width), settings.recalled_memories

    def forward(self, query: Tensor, memories: Tensor, valid: Tensor, targets: Tensor | None) -> Recalled:
        """Choose among all memories. The last one is read in any case, behind those that are chosen.

        Args:
            query: ``[b, m, d]``, q_n, read from tokens alone. A query that has seen memories tells the rows of a batch
                apart by these, and then the recall's loss teaches nothing else (seen).
            memories: ``[b, c, m, d]``, normalized, oldest first, at least as many as are chosen.
            valid: ``[b, c]`` bool; in each row the valid ones come last.
            targets: ``[b]``, how many memories back the right one lies, or 0; None leaves the loss out.
        """
        queries = self.query(normalized(query).mean(dim=1).to(memories.dtype))
        keys = self.key(memories.mean(dim=2))
        scores = (keys @ queries[:, :, None])[:, :, 0].float() * self.scale - self.handicap(keys)
        weights = scores.masked_fill(~valid, LOWEST).softmax(dim=1)
        # in the order of reading, so that empty places come first: valid memories are the newest ones of a row
        at = scores.detach().masked_fill(~valid, LOWEST).topk(self.chosen, dim=1).indices.sort(dim=1).values
        weight = weights.gather(1, at).clamp_min(1e-6)
        chosen = memories.gather(1, at[:, :, None, None].expand(-1, -1, *memories.shape[2:]))
        chosen = chosen * (weight / weight.detach())[:, :, None, None].to(chosen.dtype)
        share = weights.detach() * valid.any(dim=1)[:, None]
        loss = torch.zeros_like(scores[:, 0]) if targets is None else self.loss(queries, keys, valid, targets)
        return Recalled(torch.cat([chosen, memories[:, -1:]], dim=1).flatten(1, 2), share, loss)

    def handicap(self, keys: Tensor) -> Tensor:
        """By how many nats the older memories are behind, ``[c]``: recency * log(age).

        Args:
            keys: ``[b, c, r]``.
        """
        ages = torch.arange(keys.shape[1], 0, -1, device=keys.device, dtype=torch.float32)
        return self.recency.float() * ages.log()

    def loss(self, queries: Tensor, keys: Tensor, valid: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats ``[b]`` of each row's target among the memories of all rows.

        The other rows' memories are what teaches the choice: over the few of its own row alone it is not learned.

        Args:
            queries: ``[b, r]``.
            keys: ``[b, c, r]``.
            valid: ``[b, c]``.
            targets: ``[b]``.
        """
        rows, cached = keys.shape[:2]
        scores = (queries @ keys.flatten(0, 1).T).float() * self.scale - self.handicap(keys).repeat(rows)
        scores = scores.masked_fill(~valid.flatten(), LOWEST)
        at = (cached - targets).clamp(0, cached - 1)
        # a memory that is no longer cached cannot be found
        asked = (targets > 0) & (targets <= cached) & valid.gather(1, at[:, None])[:, 0]
        right = torch.arange(rows, device=at.device) * cached + at
        return nn.functional.cross_entropy(scores, right, reduction="none").where(asked, scores.new_zeros(()))
