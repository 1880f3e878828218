"""One segment: summarise, recall, read, write (paper, section 3, equations 1 to 5).

Shapes: b batch, c cached memories, m memory tokens, d embedding width, w tokens of a segment, v vocabulary.
"""

from typing import Any, NamedTuple, Protocol, overload

import torch
from torch import Tensor, nn

from hmt_ds.memory.loss import cross_entropy, row_losses
from hmt_ds.memory.recall import Recall
from hmt_ds.memory.segments import Segment, Summary
from hmt_ds.memory.settings import MemorySettings, Mode


class Backbone(Protocol):
    """What the memory asks of a causal language model."""

    @property
    def dim(self) -> int:
        """d, the width of embeddings and last hidden states."""

    @property
    def vocabulary(self) -> int:
        """v, how many logits a position has."""

    def embed(self, ids: Tensor) -> Tensor:
        """``[b, t]`` -> ``[b, t, d]``."""

    def decode(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        """``[b, t, d]`` -> last hidden states ``[b, t, d]``, after the final norm. ``mask [b, t]`` bool or None."""

    def logits(self, hidden: Tensor) -> Tensor:
        """``[b, t, d]`` -> ``[b, t, v]``."""


class SegmentOutput(NamedTuple):
    """What reading a segment gives.

    Attributes:
        loss: ``[b]``, cross-entropy summed over the row's labels, at least float32; ``[b, L]`` if it was asked for by
            token.
        memory: ``[b, m, d]``, M_n. Empty (m = 0) without memory.
        prompt: ``[b, m, d]``, P_n, detached. Empty without memory.
        recall: ``[b, c]`` float32, the weight of each cached memory in P_n, detached; zeros where none was recalled.
        logits: ``[b, L, v]`` of the fresh tokens, if they were asked for.
        loss_instead: ``[i, b]`` or ``[i, b, L]``, losses of the same segment read with i other memories, if these were
            asked for (:func:`hmt_ds.memory.bptt.read_window`).
    """

    loss: Tensor
    memory: Tensor
    prompt: Tensor
    recall: Tensor
    logits: Tensor | None = None
    loss_instead: Tensor | None = None


class Prompt(nn.Module):
    """Learned embeddings ``[m, d]``, read through a lookup so that ZeRO-3 gathers them as it does any layer."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.embeddings = nn.Embedding(tokens, dim)

    def forward(self, batch: int) -> Tensor:
        """The prompt for every row, ``[batch, m, d]``."""
        device = self.embeddings.weight.device
        # accelerate's offloading leaves a weight on the meta device between its uses; its hook moves real ids only
        rows = torch.arange(self.embeddings.num_embeddings, device="cpu" if device.type == "meta" else device)
        return self.embeddings(rows.expand(batch, -1))


class HMT(nn.Module):
    """A backbone that reads one segment at a time and remembers the earlier ones.

    ``forward`` reads one segment; :mod:`hmt_ds.memory.bptt` goes through many.
    """

    def __init__(self, backbone: nn.Module, settings: MemorySettings):
        super().__init__()
        self.backbone: Backbone = backbone  # type: ignore[assignment]
        self.settings = settings
        self.cross_entropy = cross_entropy  # an executor puts a compiled one here
        dim = self.backbone.dim
        if settings.mode != "backbone":
            self.initial_prompt = Prompt(settings.memory_tokens, dim)
        if settings.mode == "hmt":
            self.summary_prompt = Prompt(settings.memory_tokens, dim)
            self.recall = Recall(dim, settings)

    @overload
    def forward(
        self,
        part: Segment,
        memories: Tensor,
        valid: Tensor,
        *,
        query: Tensor | None = None,
        mode: Mode | None = None,
        with_loss: bool = True,
        with_logits: bool = False,
        by_token: bool = False,
    ) -> SegmentOutput: ...

    @overload
    def forward(self, part: Summary, *, query: None = None, with_loss: bool = True) -> Tensor: ...

    def forward(
        self,
        part: Segment | Summary,
        memories: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        query: Tensor | None = None,
        mode: Mode | None = None,
        with_loss: bool = True,
        with_logits: bool = False,
        by_token: bool = False,
    ) -> SegmentOutput | Tensor:
        """Read one segment, or the beginnings of some. (One method for both: an engine around it has no other.)

        Args:
            part: what to read.
            memories: ``[b, c, m, d]``, what was remembered, oldest first. For a segment, as all that follows.
            valid: ``[b, c]`` bool, which of them belong to the row's document.
            query: ``[b, m, d]``, the segment's summary, if it was read ahead.
            mode: read in another mode than the settings', to compare (``backbone``: memory off).
            with_loss: False gives zeros, without the arithmetic of the head.
            with_logits: return the logits too.
            by_token: return the loss of each token, not their sum.

        Returns:
            A :class:`SegmentOutput`; of a :class:`Summary`, the queries ``[b * s, m, d]``.
        """
        if isinstance(part, Summary):
            return self.read_ahead(part)
        assert memories is not None and valid is not None
        mode = mode or self.settings.mode
        prompt, share = self.memory_prompt(part, memories, valid, mode, query)
        hidden, memory = self.read(part, prompt)
        losses, logits = self.score(part, hidden, with_loss=with_loss, with_logits=with_logits, by_token=by_token)
        return SegmentOutput(losses, memory, prompt.detach(), share, logits)

    def memory_prompt(
        self, segment: Segment, memories: Tensor, valid: Tensor, mode: Mode, query: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """P_n ``[b, m, d]`` and the share of each cached memory in it ``[b, c]``."""
        batch, cached = valid.shape
        if mode == "backbone":
            return memories.new_zeros(batch, 0, self.backbone.dim), torch.zeros_like(valid, dtype=torch.float32)
        if mode == "rmt" and not cached:
            return self.initial_prompt(batch), valid.float()
        if mode == "hmt":
            # in front of the first segment every query recalls nothing: the summary's prompt stands in for it
            stand_in = self.summary_prompt(batch)
            query = stand_in if query is None else query + 0 * stand_in
        recalled, share = self.recalled(query, memories, valid, mode)
        return self.prompt_of(recalled, remembers(valid, mode)), share

    def recalled(self, query: Tensor | None, memories: Tensor, valid: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
        """What is recalled ``[b, m, d]``, and the share of each cached memory in it ``[b, c]``.

        Rows that remember nothing get something finite, and no shares.
        """
        if mode == "rmt":
            share = torch.zeros_like(valid, dtype=torch.float32)
            share[:, -1] = valid[:, -1]
            return memories[:, -1], share
        recalled, share = self.recall(query, memories, valid)
        return recalled, share * valid.any(dim=1)[:, None]

    def prompt_of(self, recalled: Tensor, remembers: Tensor) -> Tensor:
        """P_n ``[b, m, d]``: what was recalled, or the learned initial prompt for rows that remember nothing.

        Both are there for every row, and one is selected: so each weight takes part in each segment.
        """
        return torch.where(remembers[:, None, None], recalled, self.initial_prompt(len(recalled)))

    def read_ahead(self, summary: Summary) -> Tensor:
        """Queries ``[b * s, m, d]``: the hidden state at the second T of [T | first j tokens | T] (equation 1)."""
        hidden, query = self.read(summary, self.summary_prompt(summary.tokens.shape[0]))
        if not torch.is_grad_enabled():
            return query
        # weights that a summary does not need take part with weight zero: DeepSpeed mishandles those that miss a pass
        others = [self.backbone.logits(hidden[:1, :1]), self.initial_prompt(1)]
        others += [self.recall(query[:1], query[:1, None], torch.ones_like(summary.lengths[:1, None]).bool())[0]]
        return query + 0 * torch.stack([other.mean() for other in others]).mean()

    def read(self, part: Segment | Summary, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Decode [prompt | tokens | prompt | pads] (equations 2, 4 and 5).

        Args:
            prompt: ``[b, m, d]``; m = 0 without memory.

        Returns:
            The hidden states of the tokens ``[b, w, d]`` and those at the trailing prompt ``[b, m, d]``.
        """
        return self.leave(part, self.decode(part, self.enter(part, prompt)), prompt.shape[1])

    def enter(self, part: Segment | Summary, prompt: Tensor) -> Tensor:
        """The embeddings ``[b, m + w + m, d]`` of [prompt | tokens | prompt | pads].

        The trailing prompt follows each row's tokens at once, for a causal model never sees what stands behind.
        """
        tokens = self.backbone.embed(part.tokens)
        prompt = prompt.to(tokens.dtype)
        at = trailing(part, prompt.shape[1])[:, :, None].expand_as(prompt)
        return torch.cat([prompt, tokens, torch.zeros_like(prompt)], dim=1).scatter(1, at, prompt)

    def decode(self, part: Segment | Summary, embeddings: Tensor) -> Tensor:
        """Through the layers: ``[b, m + w + m, d]`` -> as many hidden states."""
        mask = part.mask
        if mask is not None:
            m = (embeddings.shape[1] - mask.shape[1]) // 2
            mask = nn.functional.pad(mask, (m, m), value=True)
        return self.backbone.decode(embeddings, mask)

    def leave(self, part: Segment | Summary, hidden: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """The hidden states of the tokens ``[b, w, d]``, and those at the trailing prompt ``[b, m, d]``."""
        at = trailing(part, m)[:, :, None].expand(-1, -1, hidden.shape[2])
        return hidden[:, m : m + part.tokens.shape[1]], hidden.gather(1, at)

    def score(
        self,
        part: Segment,
        hidden: Tensor,
        *,
        with_loss: bool,
        with_logits: bool = False,
        backward_follows: bool = False,
        by_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The rows' losses ``[b]`` and logits ``[b, L, v]`` of the fresh tokens, from hidden states ``[b, w, d]``.

        ``backward_follows`` and ``by_token``: see :func:`hmt_ds.memory.loss.row_losses`.
        """
        hidden = hidden.gather(1, part.fresh[:, :, None].expand(-1, -1, hidden.shape[2]))
        logits = self.backbone.logits(hidden) if with_logits else None
        if not with_loss:
            return torch.zeros(len(hidden), device=hidden.device), logits
        head, vocabulary = self.backbone.logits, self.backbone.vocabulary
        how: dict[str, Any] = {"cross_entropy": self.cross_entropy, "backward_follows": backward_follows}
        return row_losses(head, hidden, part.labels, vocabulary, by_token=by_token, **how), logits


def trailing(part: Segment | Summary, m: int) -> Tensor:
    """Where the trailing prompt stands in each row, ``[b, m]``."""
    return (m + part.lengths)[:, None] + torch.arange(m, device=part.lengths.device)


def remembers(valid: Tensor, mode: Mode) -> Tensor:
    """Which rows ``[b]`` have anything to recall, by the valid ones of their cached memories ``[b, c]``."""
    return valid[:, -1] if mode == "rmt" else valid.any(dim=1)
