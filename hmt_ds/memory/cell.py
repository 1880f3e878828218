"""One segment: summarise, recall, read, write (paper, section 3, equations 1 to 5; and the adapted interface).

Shapes: b batch, c cached memories, m memory tokens, p prompt tokens, d embedding width, w tokens of a segment,
v vocabulary.
"""

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from hmt_ds.memory.backbone import Backbone
from hmt_ds.memory.loss import cross_entropy, row_losses
from hmt_ds.memory.prompts import MemoryEmbedding, Prompt, normalized
from hmt_ds.memory.recall import Recall, Recalled, Selection
from hmt_ds.memory.segments import Segment, Summary, places_in_parts
from hmt_ds.memory.settings import MemorySettings, Mode


class SegmentOutput(NamedTuple):
    """What reading a segment gives.

    Attributes:
        loss: ``[b]``, cross-entropy summed over the row's labels, at least float32; ``[b, L]`` if it was asked for by
            token.
        memory: ``[b, m, d]``, M_n. Empty (m = 0) without memory.
        prompt: ``[b, p, d]``, P_n, detached. Empty without memory.
        recall: ``[b, c]`` float32, the weight of each cached memory in P_n, detached; zeros where none was recalled.
        recall_loss: ``[b]`` float32, see :class:`hmt_ds.memory.recall.Recalled`.
        logits: ``[b, L, v]`` of the fresh tokens, if they were asked for.
        loss_instead: ``[i, b]`` or ``[i, b, L]``, losses of the same segment read with i other memories, if these were
            asked for (:func:`hmt_ds.memory.bptt.read_window`).
    """

    loss: Tensor
    memory: Tensor
    prompt: Tensor
    recall: Tensor
    recall_loss: Tensor
    logits: Tensor | None = None
    loss_instead: Tensor | None = None


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
        adapted, memory = settings.interface == "adapted", settings.mode != "backbone"
        if adapted:
            self.sink = Prompt(1, dim)
        if memory:
            self.initial_prompt = Prompt(settings.memory_tokens, dim)
        if memory and adapted:
            self.write_prompt = Prompt(settings.memory_tokens, dim)
            self.memory_embedding = MemoryEmbedding(dim)
        if settings.summarises:
            self.summary_prompt = Prompt(settings.memory_tokens, dim)
        if settings.mode == "hmt":
            self.recall = Selection(dim, settings) if adapted else Recall(dim, settings)

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
        prompt, recalled = self.memory_prompt(memories, valid, mode, query, part.targets)
        hidden, memory = self.read(part, prompt, mode)
        losses, logits = self.score(part, hidden, with_loss=with_loss, with_logits=with_logits, by_token=by_token)
        return SegmentOutput(losses, memory, prompt.detach(), recalled.share, recalled.loss, logits)

    def memory_prompt(
        self, memories: Tensor, valid: Tensor, mode: Mode, query: Tensor | None, targets: Tensor | None = None
    ) -> tuple[Tensor, Recalled]:
        """P_n ``[b, p, d]``, and what it was made from."""
        batch, cached = valid.shape
        nothing = Recalled(
            memories.new_zeros(batch, 0, self.backbone.dim),
            torch.zeros_like(valid, dtype=torch.float32),
            torch.zeros(batch, device=valid.device),
        )
        if mode == "backbone":
            return nothing.memory, nothing
        if mode == "rmt" and not cached and self.settings.interface == "paper":
            return self.initial_prompt(batch), nothing
        if mode == "hmt":
            # in front of the first segment every query recalls nothing: the summary's prompt stands in for it
            stand_in = self.summary_prompt(batch)
            query = stand_in if query is None else query + 0 * stand_in
        recalled = self.recalled(query, memories, valid, mode, targets)
        return self.prompt_of(recalled.memory, valid, mode), recalled

    def recalled(
        self, query: Tensor | None, memories: Tensor, valid: Tensor, mode: Mode, targets: Tensor | None = None
    ) -> Recalled:
        """What is recalled, before it is embedded. Rows that remember nothing have no shares.

        Args:
            query: ``[b, m, d]``, the summary; in mode hmt.
            targets: ``[b]``, see :class:`hmt_ds.memory.recall.Selection`.
        """
        cached = valid.shape[1]
        if self.settings.interface == "adapted":
            # places for the last memory and those recalled beside it, empty ones in front
            missing = max(0, self.settings.prompt_tokens(mode) // self.settings.memory_tokens - cached)
            memories = normalized(nn.functional.pad(memories, (0, 0, 0, 0, missing, 0)))
            valid = nn.functional.pad(valid, (missing, 0))
            if mode == "hmt":
                chosen = self.recall(query, memories, valid, targets if self.settings.recall_loss else None)
                return chosen._replace(share=chosen.share[:, missing:])
        no_loss = torch.zeros(len(valid), device=valid.device)
        if mode == "rmt":
            share = torch.zeros_like(valid, dtype=torch.float32)
            share[:, -1] = valid[:, -1]
            return Recalled(memories[:, -1], share[:, share.shape[1] - cached :], no_loss)
        memory, share = self.recall(query, memories, valid)
        return Recalled(memory, share * valid.any(dim=1)[:, None], no_loss)

    def prompt_of(self, recalled: Tensor, valid: Tensor, mode: Mode) -> Tensor:
        """P_n ``[b, p, d]``: what was recalled, or the learned initial prompt in places where nothing was.

        Both are there for every row, and one is selected: so each weight takes part in each segment.

        Args:
            recalled: ``[b, p, d]``.
            valid: ``[b, c]`` bool, of the cached memories.
        """
        m = self.settings.memory_tokens
        places = recalled.shape[1] // m
        initial = self.initial_prompt(len(recalled)).repeat(1, places, 1)
        if self.settings.interface == "adapted":
            valid = nn.functional.pad(valid, (places, 0))
            # valid memories are a row's newest; the last one is in the last place, whatever was chosen for the others
            filled = torch.cat([valid[:, valid.shape[1] + 1 - places :], valid[:, -1:]], dim=1)
            embedded = self.memory_embedding(recalled)
        else:
            filled = (valid[:, -1] if mode == "rmt" else valid.any(dim=1))[:, None]
            embedded = recalled
        return torch.where(filled.repeat_interleave(m, dim=1)[:, :, None], embedded, initial)

    def read_ahead(self, summary: Summary) -> Tensor:
        """Queries ``[b * s, m, d]``: the hidden state at the second T of [T | first j tokens | T] (equation 1).

        With the adapted interface, that at T of [S | sensory tokens | T].
        """
        hidden, query = self.read(summary, self.summary_prompt(summary.tokens.shape[0]))
        if not torch.is_grad_enabled():
            return query
        # weights that a summary does not need take part with weight zero: DeepSpeed mishandles those that miss a pass
        memories = query[:1, None].expand(-1, 1 + self.settings.recalled_memories, -1, -1)
        others = [self.backbone.logits(hidden[:1, :1])]
        others += self.memory_prompt(memories, torch.ones_like(memories[:, :, 0, 0]).bool(), "hmt", query[:1])[:1]
        others += [self.write_prompt(1)] if self.settings.interface == "adapted" else []
        return query + 0 * torch.stack([other.mean() for other in others]).mean()

    def read(self, part: Segment | Summary, prompt: Tensor, mode: Mode | None = None) -> tuple[Tensor, Tensor]:
        """Decode [prompt | tokens | prompt | pads] (equations 2, 4 and 5), or as :meth:`around` has it.

        Args:
            prompt: ``[b, p, d]``; p = 0 without memory.

        Returns:
            The hidden states of the tokens ``[b, w, d]`` and those behind them, where the memory is ``[b, m, d]``.
        """
        return self.leave(part, self.decode(part, self.enter(part, prompt), mode), mode)

    def around(self, part: Segment | Summary, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """What the backbone reads in front of the tokens ``[b, .., d]``, and right behind them ``[b, m, d]``.

        The prompt on both sides; with the adapted interface a sink and the prompt, and write embeddings. There the sink
        is first even without memory, so that a baseline has it too.
        """
        if self.settings.interface == "paper":
            return prompt, prompt
        sink = self.sink(len(prompt))
        if isinstance(part, Summary):
            return sink, prompt
        behind = self.write_prompt(len(prompt)) if prompt.shape[1] else prompt
        return torch.cat([sink, prompt.to(sink.dtype)], dim=1), behind

    def lengths_around(self, part: Segment | Summary, mode: Mode | None) -> tuple[int, int]:
        """How many embeddings :meth:`around` puts in front of the tokens, and behind them."""
        size = self.settings
        if isinstance(part, Summary):
            return size.sink_tokens or size.memory_tokens, size.memory_tokens
        return size.sink_tokens + size.prompt_tokens(mode), size.write_tokens(mode)

    def enter(self, part: Segment | Summary, prompt: Tensor) -> Tensor:
        """The embeddings ``[b, t, d]`` of everything that the backbone reads, t positions, pads at the end.

        What stands behind the tokens follows each row's own tokens at once: a causal model never sees pads behind.
        """
        tokens = self.backbone.embed(part.tokens)
        before, behind = (x.to(tokens.dtype) for x in self.around(part, prompt))
        if isinstance(part, Segment) and part.parts is not None:
            tokens, behind = self.with_beginnings(part, part.parts, tokens, prompt, behind)
        at = positions_behind(part, before.shape[1], behind.shape[1])[:, :, None].expand_as(behind)
        return torch.cat([before, tokens, torch.zeros_like(behind)], dim=1).scatter(1, at, behind)

    def with_beginnings(
        self, part: Segment, parts: Tensor, tokens: Tensor, prompt: Tensor, behind: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put what is in front of a first segment into the gaps of the tokens' embeddings ``[b, w, d]``.

        Returns:
            The embeddings of tokens and gaps, and what is behind the last document ``[b, m, d]``.
        """
        initial = prompt
        if prompt.shape[1]:
            initial = self.initial_prompt(len(prompt)).repeat(1, prompt.shape[1] // self.settings.memory_tokens, 1)
        before, behind_first = (x.to(tokens.dtype) for x in self.around(part, initial))
        behind = torch.where(parts[:, -1:, None] > 0, behind_first, behind)
        if not before.shape[1]:
            return tokens, behind
        place = places_in_parts(parts)
        gap = (parts > 0) & (place < before.shape[1])
        at = place.clamp(max=before.shape[1] - 1)[:, :, None].expand_as(tokens)
        return torch.where(gap[:, :, None], before.gather(1, at), tokens), behind

    def decode(self, part: Segment | Summary, embeddings: Tensor, mode: Mode | None = None) -> Tensor:
        """Through the layers: ``[b, t, d]`` -> as many hidden states."""
        mask, parts = part.mask, part.parts if isinstance(part, Segment) else None
        if mask is not None:
            mask = nn.functional.pad(mask, self.lengths_around(part, mode), value=True)
        if parts is None:
            return self.backbone.decode(embeddings, mask)
        before, behind = self.lengths_around(part, mode)
        parts = torch.cat([nn.functional.pad(parts, (before, 0)), parts[:, -1:].expand(-1, behind)], dim=1)
        return self.backbone.decode(embeddings, mask, parts)

    def leave(self, part: Segment | Summary, hidden: Tensor, mode: Mode | None = None) -> tuple[Tensor, Tensor]:
        """The hidden states of the tokens ``[b, w, d]``, and those behind them ``[b, m, d]``."""
        before, behind = self.lengths_around(part, mode)
        at = positions_behind(part, before, behind)[:, :, None].expand(-1, -1, hidden.shape[2])
        return hidden[:, before : before + part.tokens.shape[1]], hidden.gather(1, at)

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
        how |= {"weights": part.weights, "by_token": by_token}
        return row_losses(head, hidden, part.labels, vocabulary, **how), logits


def positions_behind(part: Segment | Summary, before: int, behind: int) -> Tensor:
    """Where a row's embeddings behind its own tokens are, ``[b, behind]``."""
    return (before + part.lengths)[:, None] + torch.arange(behind, device=part.lengths.device)
