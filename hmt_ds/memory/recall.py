"""Retrieval from memory (recall): attention of a segment's query over the cached memories of earlier segments."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hmt_ds.memory.prompts import normalized
from hmt_ds.memory.settings import MemorySettings

LARGE = 4096  # from this width on, HMT-pytorch divides by the width itself while it trains
LOWEST = torch.finfo(torch.float32).min  # not -inf: a row without any valid memory must not turn into nan


class Recalled(NamedTuple):
    """What a segment retrieves from the memories of earlier segments.

    Attributes:
        memory: ``[batch, prompt_tokens, dim]``; finite but meaningless in rows without a valid memory.
        share: ``[batch, cached]`` float32, the weight of each cached memory, detached.
        loss: ``[batch]`` float32, cross-entropy in nats of the weights against the memory that the data names as right;
            0 where it names none.
    """

    memory: Tensor
    share: Tensor
    loss: Tensor


class Recall(nn.Module):
    """The paper's memory retrieval: P = softmax(q W_q (M W_k)^T / sqrt(r)) M (arXiv 2405.06067, equation 3).

    q is the segment's retrieval query, M the cached memories, r the width of the projections; there is no value
    projection. Memories are projected again for every segment: this costs about a thousandth of a segment's arithmetic,
    and only the memories have to be kept for the backward pass.
    """

    def __init__(self, dim: int, settings: MemorySettings):
        super().__init__()
        width = settings.recall_width(dim)
        self.query = nn.Linear(dim, width, bias=False)
        self.key = nn.Linear(dim, width, bias=False)
        by_width = settings.recall_scale == "reference" and min(dim, width) >= LARGE
        self.scale = 1 / width if by_width else 1 / math.sqrt(width)

    def forward(self, query: Tensor, memories: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Average the cached memories with the attention weights of the query.

        Args:
            query: ``[batch, memory_tokens, dim]``, the segment's retrieval query.
            memories: ``[batch, cached, memory_tokens, dim]``, oldest first. If ``cached`` is 0, the result is zero, and
                every weight still takes part in the graph (DeepSpeed mishandles weights that miss a micro-step).
            valid: ``[batch, cached]`` bool. A row without any valid memory gets a finite, meaningless result.

        Returns:
            The memory prompt ``[batch, memory_tokens, dim]``, and the weight of each memory ``[batch, cached]``
            (float32, detached, summing to 1).
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
    """Memory retrieval of ``interface: adapted``: select the memories with the largest weights, and put them side by
    side.

    Weights w are softmax(v W_q (u_i W_k)^T / sqrt(r) - recency * log(age_i)), where v and u_i are the means of the
    query's and of memory i's normalized embeddings, r is the width of the projections, and the age of the last memory
    is 1: of several memories that answer, the newest is chosen, which content alone cannot tell. (An average over many
    memories would be nearly the same vector for every query.) Gradients reach the weights through a factor w /
    stopgrad(w) = 1 on each chosen memory, and through an auxiliary loss.
    """

    def __init__(self, dim: int, settings: MemorySettings):
        super().__init__()
        width = settings.recall_width(dim)
        self.query = nn.Linear(dim, width, bias=False)
        self.key = nn.Linear(dim, width, bias=False)
        self.recency = nn.Parameter(torch.ones(1))
        self.scale = 1 / math.sqrt(width)
        self.chosen, self.last = settings.recalled_memories, settings.last_memories

    def forward(self, query: Tensor, memories: Tensor, valid: Tensor, targets: Tensor | None) -> Recalled:
        """Select memories for a segment's prompt; the last memories are always put behind the selected ones.

        Args:
            query: ``[batch, memory_tokens, dim]``, the segment's retrieval query, made of tokens alone. (If it depended
                on memories, the auxiliary loss would only learn to tell the rows of a batch apart.)
            memories: ``[batch, cached, memory_tokens, dim]``, normalized, oldest first; at least as many as are
                selected.
            valid: ``[batch, cached]`` bool; in each row the valid ones come last.
            targets: ``[batch]`` int64, how many memories back the right one is, 0 if unknown; None skips the auxiliary
                loss.
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
        return Recalled(torch.cat([chosen, memories[:, -self.last :]], dim=1).flatten(1, 2), share, loss)

    def handicap(self, keys: Tensor) -> Tensor:
        """Return by how many nats the retrieval score of each memory is lowered for its age: recency * log(age),
        ``[cached]``.

        Args:
            keys: ``[batch, cached, width]``, projected memories.
        """
        ages = torch.arange(keys.shape[1], 0, -1, device=keys.device, dtype=torch.float32)
        return self.recency.float() * ages.log()

    def loss(self, queries: Tensor, keys: Tensor, valid: Tensor, targets: Tensor) -> Tensor:
        """Return the auxiliary retrieval loss: cross-entropy in nats of each row's right memory among those of all
        rows.

        The few memories of a row alone are too few wrong answers to learn from.

        Args:
            queries: ``[batch, width]``, projected retrieval queries.
            keys: ``[batch, cached, width]``, projected memories.
            valid: ``[batch, cached]`` bool, which memories belong to the row's document.
            targets: ``[batch]`` int64, how many memories back the right one is (1: the last); 0 gives a loss of 0.

        Returns:
            ``[batch]`` losses.
        """
        rows, cached = keys.shape[:2]
        scores = (queries @ keys.flatten(0, 1).T).float() * self.scale - self.handicap(keys).repeat(rows)
        scores = scores.masked_fill(~valid.flatten(), LOWEST)
        at = (cached - targets).clamp(0, cached - 1)
        # a memory that is no longer cached cannot be found
        asked = (targets > 0) & (targets <= cached) & valid.gather(1, at[:, None])[:, 0]
        right = torch.arange(rows, device=at.device) * cached + at
        return nn.functional.cross_entropy(scores, right, reduction="none").where(asked, scores.new_zeros(()))
