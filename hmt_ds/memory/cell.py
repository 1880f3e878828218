"""One segment: summarise, recall, read, write (paper, section 3, equations 1 to 5).

Shapes: b batch, c cached memories, m memory tokens, d embedding width, w tokens of a segment, v vocabulary.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hmt_ds.memory.loss import row_losses
from hmt_ds.memory.recall import Recall
from hmt_ds.memory.segments import Segment
from hmt_ds.memory.settings import MemorySettings, Mode


class Backbone(Protocol):
    """What the memory asks of a causal language model."""

    @property
    def dim(self) -> int:
        """d, the width of embeddings and last hidden states."""

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
        logits: ``[b, w', v]`` for the columns from ``Segment.fresh_from`` on, if they were asked for.
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
        self, segment: Segment, memories: Tensor, valid: Tensor, *, mode: Mode | None = None, with_logits: bool = False
    ) -> SegmentOutput:
        """Read one segment.

        Args:
            segment: the tokens of every row.
            memories: ``[b, c, m, d]``, what was remembered, oldest first.
            valid: ``[b, c]`` bool, which of them belong to the row's document.
            mode: read in another mode than the settings', to compare (``backbone``: memory off).
            with_logits: return the logits too.
        """
        mode = mode or self.settings.mode
        tokens = self.backbone.embed(segment.tokens)
        if mode == "backbone":
            hidden = self.backbone.decode(tokens, segment.mask)
            memory = prompt = tokens[:, :0]
            share = torch.zeros_like(valid, dtype=torch.float32)
        else:
            prompt, share = self.memory_prompt(segment, memories, valid, mode)
            hidden, memory = self.read_between(prompt, tokens, segment.lengths, segment.mask)
        logits = self.backbone.logits(hidden[:, segment.fresh_from :])
        loss = row_losses(logits, segment.labels[:, segment.fresh_from :])
        return SegmentOutput(loss, memory, prompt.detach(), share, logits if with_logits else None)

    def memory_prompt(self, segment: Segment, memories: Tensor, valid: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
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
        # with an empty cache every query recalls nothing: spare the summary pass, keep the weights in the graph
        query = self.summarise(segment) if memories.shape[1] else self.summary_prompt(segment.tokens.shape[0])
        recalled, share = self.recall(query, memories, valid)
        remembers = valid.any(dim=1)
        return torch.where(remembers[:, None, None], recalled, initial), share * remembers[:, None]

    def summarise(self, segment: Segment) -> Tensor:
        """q_n ``[b, m, d]``: the hidden state at the second T of [T | first j tokens | T] (equation 1)."""
        prompt = self.summary_prompt(segment.tokens.shape[0])
        tokens = self.backbone.embed(segment.summary)
        return self.read_between(prompt, tokens, segment.summary_lengths, segment.summary_mask)[1]

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
