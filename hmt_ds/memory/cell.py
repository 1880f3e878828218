"""One segment: summarise, recall, read, write (paper, section 3, equations 1 to 5).

Shapes: b batch, c cached memories, m memory tokens, d embedding width, w tokens of a segment, v vocabulary.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hmt_ds.memory.loss import row_losses
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
        loss: ``[b]``, cross-entropy summed over the row's labels, at least float32.
        memory: ``[b, m, d]``, M_n. Empty (m = 0) without memory.
        prompt: ``[b, m, d]``, P_n, detached. Empty without memory.
        recall: ``[b, c]`` float32, the weight of each cached memory in P_n, detached; zeros where none was recalled.
        logits: ``[b, L, v]`` of the fresh tokens, if they were asked for.
    """

    loss: Tensor
    memory: Tensor
    prompt: Tensor
    recall: Tensor
    logits: Tensor | None = None


class Prompt(nn.Module):
    """Learned embeddings ``[m, d]``, read through a lookup so that ZeRO-3 gathers them as it does any layer."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.embeddings = nn.Embedding(tokens, dim)

    def forward(self, batch: int) -> Tensor:
        """The prompt for every row, ``[batch, m, d]``."""
        rows = torch.arange(self.embeddings.num_embeddings, device=self.embeddings.weight.device)
        return self.embeddings(rows.expand(batch, -1))


class HMT(nn.Module):
    """A backbone that reads one segment at a time and remembers the earlier ones.

    ``forward`` reads one segment; :mod:`hmt_ds.memory.unroll` goes through many.
    """

    def __init__(self, backbone: nn.Module, settings: MemorySettings):
        super().__init__()
        self.backbone: Backbone = backbone  # type: ignore[assignment]
        self.settings = settings
        dim = self.backbone.dim
        if settings.mode != "backbone":
            self.initial_prompt = Prompt(settings.memory_tokens, dim)
        if settings.mode == "hmt":
            self.summary_prompt = Prompt(settings.memory_tokens, dim)
            self.recall = Recall(dim, settings)

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
    ) -> Any:
        """Read one segment, or the beginnings of some. (One method for both: an engine around it has no other.)

        Args:
            part: what to read.
            memories: ``[b, c, m, d]``, what was remembered, oldest first. For a segment, as all that follows.
            valid: ``[b, c]`` bool, which of them belong to the row's document.
            query: ``[b, m, d]``, the segment's summary, if it was read ahead.
            mode: read in another mode than the settings', to compare (``backbone``: memory off).
            with_loss: False gives zeros, without the arithmetic of the head.
            with_logits: return the logits too.

        Returns:
            A :class:`SegmentOutput`; of a :class:`Summary`, the queries ``[b * s, m, d]``.
        """
        if isinstance(part, Summary):
            return self.read_ahead(part)
        assert memories is not None and valid is not None
        mode = mode or self.settings.mode
        tokens = self.backbone.embed(part.tokens)
        if mode == "backbone":
            hidden = self.backbone.decode(tokens, part.mask)
            memory = prompt = tokens[:, :0]
            share = torch.zeros_like(valid, dtype=torch.float32)
        else:
            prompt, share = self.memory_prompt(part, memories, valid, mode, query)
            hidden, memory = self.read_between(prompt, tokens, part.lengths, part.mask)
        hidden = hidden.gather(1, part.fresh[:, :, None].expand(-1, -1, hidden.shape[2]))
        logits = self.backbone.logits(hidden) if with_logits else None
        if with_loss:
            loss = row_losses(self.backbone.logits, hidden, part.labels, self.backbone.vocabulary)
        else:
            loss = torch.zeros(len(hidden), device=hidden.device)
        return SegmentOutput(loss, memory, prompt.detach(), share, logits)

    def memory_prompt(
        self, segment: Segment, memories: Tensor, valid: Tensor, mode: Mode, query: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """P_n ``[b, m, d]`` and the share of each cached memory in it ``[b, c]``.

        Rows that remember nothing get the learned initial prompt. Both ways are computed for every row, and one is
        selected: so each weight takes part in each segment.
        """
        initial = self.initial_prompt(segment.tokens.shape[0])
        if mode == "rmt":
            if memories.shape[1] == 0:
                return initial, valid.float()
            share = torch.zeros_like(valid, dtype=torch.float32)
            share[:, -1] = valid[:, -1]
            return torch.where(valid[:, -1, None, None], memories[:, -1], initial), share
        # in front of the first segment every query recalls nothing: the summary's prompt stands in for it
        stand_in = self.summary_prompt(segment.tokens.shape[0])
        recalled, share = self.recall(stand_in if query is None else query + 0 * stand_in, memories, valid)
        remembers = valid.any(dim=1)
        return torch.where(remembers[:, None, None], recalled, initial), share * remembers[:, None]

    def read_ahead(self, summary: Summary) -> Tensor:
        """Queries ``[b * s, m, d]``: the hidden state at the second T of [T | first j tokens | T] (equation 1)."""
        prompt = self.summary_prompt(summary.tokens.shape[0])
        tokens = self.backbone.embed(summary.tokens)
        hidden, query = self.read_between(prompt, tokens, summary.lengths, summary.mask)
        if not torch.is_grad_enabled():
            return query
        # weights that a summary does not need take part with weight zero: DeepSpeed mishandles those that miss a pass
        others = [self.backbone.logits(hidden[:1, :1]), self.initial_prompt(1)]
        others += [self.recall(query[:1], query[:1, None], torch.ones_like(summary.lengths[:1, None]).bool())[0]]
        return query + 0 * torch.stack([other.mean() for other in others]).mean()

    def read_between(
        self, prompt: Tensor, tokens: Tensor, lengths: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decode [prompt | tokens | prompt | pads] and read out (equations 2, 4 and 5).

        Args:
            prompt: ``[b, m, d]``.
            tokens: ``[b, w, d]``, pads at the end of each row.
            lengths: ``[b]``, tokens per row; the trailing prompt follows them at once, for a causal model never
                sees what stands behind.
            mask: ``[b, w]`` bool or None.

        Returns:
            The hidden states of the tokens ``[b, w, d]`` and those at the trailing prompt ``[b, m, d]``.
        """
        m, dim = prompt.shape[1:]
        at = (m + lengths)[:, None] + torch.arange(m, device=lengths.device)
        at = at[:, :, None].expand(-1, -1, dim)
        prompt = prompt.to(tokens.dtype)
        embeddings = torch.cat([prompt, tokens, torch.zeros_like(prompt)], dim=1).scatter(1, at, prompt)
        if mask is not None:
            mask = nn.functional.pad(mask, (m, m), value=True)
        hidden = self.backbone.decode(embeddings, mask)
        return hidden[:, m : m + tokens.shape[1]], hidden.gather(1, at)
