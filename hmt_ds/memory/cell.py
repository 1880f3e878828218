"""The model on one segment: summarise it, retrieve memories, read its tokens, write a memory.

See section 3, equations 1 to 5 of the paper (arXiv 2405.06067); ``interface: adapted`` is this project's variant.
"""

from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from hmt_ds.memory.loss import cross_entropy, row_losses
from hmt_ds.memory.prompts import MemoryEmbedding, Prompt, normalized
from hmt_ds.memory.recall import Recall, Recalled, Selection
from hmt_ds.memory.segments import Segment, Summary
from hmt_ds.memory.sequence import PromptedBackbone
from hmt_ds.memory.settings import MemorySettings, Mode


class SegmentOutput(NamedTuple):
    """The output of the model for one segment of every row.

    Attributes:
        loss: ``[batch]``, cross-entropy in nats summed over the row's labels, at least float32; ``[batch,
            segment_length]`` if losses by token were asked for.
        memory: ``[batch, memory_tokens, dim]``, the memory that the segment wrote; 0 tokens without memory.
        prompt: ``[batch, prompt_tokens, dim]``, the memory prompt in front of the tokens, detached; 0 tokens without
            memory.
        recall: ``[batch, cached]`` float32, the weight of each cached memory in the prompt, detached; zeros if none was
            retrieved.
        recall_loss: ``[batch]`` float32, cross-entropy in nats of the retrieval weights against the right memory; 0
            where the data names none.
        logits: ``[batch, segment_length, vocabulary]`` of the segment's own tokens, if asked for.
        loss_instead: ``[readings, batch]`` or ``[readings, batch, segment_length]``, losses of the same segment with
            other memories (another document's, or none), if asked for.
    """

    loss: Tensor
    memory: Tensor
    prompt: Tensor
    recall: Tensor
    recall_loss: Tensor
    logits: Tensor | None = None
    loss_instead: Tensor | None = None


class HMT(PromptedBackbone):
    """A backbone with a memory: ``forward`` reads one segment, with a prompt made from the memories of earlier
    segments.

    :mod:`hmt_ds.memory.bptt` runs it over many segments, and backpropagates.
    """

    def __init__(self, backbone: nn.Module, settings: MemorySettings):
        super().__init__(backbone, settings)
        self.cross_entropy = cross_entropy  # an executor puts a compiled one here
        dim, adapted = self.backbone.dim, settings.interface == "adapted"
        if adapted and settings.mode != "backbone":
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
        """Run the model on one segment of every row, or compute the retrieval queries of several segments.

        One method does both because DeepSpeed's engine forwards only this one.

        Args:
            part: the segment to read; or a summary, the tokens that retrieval queries are made of. All other arguments
                are for a segment.
            memories: ``[batch, cached, memory_tokens, dim]``, oldest first.
            valid: ``[batch, cached]`` bool, which memories belong to the row's document.
            query: ``[batch, memory_tokens, dim]``, the segment's retrieval query; None for a segment with nothing to
                retrieve.
            mode: ``hmt``, ``rmt`` or ``backbone`` (memory off); default: the mode of the settings.
            with_loss: False returns losses of 0 and skips the output head.
            with_logits: return the logits too.
            by_token: return the loss of each token instead of their sum.

        Returns:
            A :class:`SegmentOutput`; for a summary the queries, ``[batch * segments, memory_tokens, dim]``.
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
        """Make the memory prompt that is put in front of a segment's tokens.

        Args:
            memories: ``[batch, cached, memory_tokens, dim]``, oldest first.
            valid: ``[batch, cached]`` bool, which memories belong to the row's document.
            mode: ``hmt`` (retrieval), ``rmt`` (last memories) or ``backbone`` (an empty prompt).
            query: ``[batch, memory_tokens, dim]``, the segment's retrieval query; None for a segment with nothing to
                retrieve.
            targets: ``[batch]`` int64, how many memories back the right one is; 0 or None if unknown.

        Returns:
            The prompt ``[batch, prompt_tokens, dim]``, and what was retrieved.
        """
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
        """Retrieve memories for a segment's prompt, by selecting or averaging; rows without a valid memory get weights
        of 0.

        Args:
            query: ``[batch, memory_tokens, dim]``, the segment's retrieval query; needed in mode hmt.
            memories: ``[batch, cached, memory_tokens, dim]``, oldest first.
            valid: ``[batch, cached]`` bool, which memories belong to the row's document.
            mode: ``hmt`` (retrieval) or ``rmt`` (last memories).
            targets: ``[batch]`` int64, how many memories back the right one is; 0 or None if unknown.
        """
        cached = valid.shape[1]
        if self.settings.interface == "adapted":
            # places for the last memories and those recalled beside them, empty ones in front
            missing = max(0, self.settings.prompt_tokens(mode) // self.settings.memory_tokens - cached)
            memories = normalized(nn.functional.pad(memories, (0, 0, 0, 0, missing, 0)))
            valid = nn.functional.pad(valid, (missing, 0))
            if mode == "hmt":
                chosen = self.recall(query, memories, valid, targets if self.settings.recall_loss else None)
                return chosen._replace(share=chosen.share[:, missing:])
        no_loss = torch.zeros(len(valid), device=valid.device)
        if mode == "rmt":
            last = self.settings.last_memories
            share = nn.functional.pad(valid[:, -last:].float(), (valid.shape[1] - last, 0))
            share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
            return Recalled(memories[:, -last:].flatten(1, 2), share[:, share.shape[1] - cached :], no_loss)
        memory, share = self.recall(query, memories, valid)
        return Recalled(memory, share * valid.any(dim=1)[:, None], no_loss)

    def prompt_of(self, recalled: Tensor, valid: Tensor, mode: Mode) -> Tensor:
        """Turn retrieved memories into a memory prompt; where memories are missing, use the learned initial prompt
        instead.

        Both are computed for every row and one is selected, so each weight takes part in each segment.

        Args:
            recalled: ``[batch, prompt_tokens, dim]``, the retrieved memories.
            valid: ``[batch, cached]`` bool, which cached memories belong to the row's document.
            mode: ``hmt`` (retrieval), ``rmt`` (last memories) or ``backbone`` (an empty prompt).

        Returns:
            ``[batch, prompt_tokens, dim]``.
        """
        m = self.settings.memory_tokens
        places = recalled.shape[1] // m
        initial = self.initial_prompt(len(recalled)).repeat(1, places, 1)
        if self.settings.interface == "adapted":
            valid = nn.functional.pad(valid, (places, 0))
            # valid memories are a row's newest, and fill the last of the chosen places, and the last of the others
            cached, last = valid.shape[1], self.settings.last_memories
            filled = torch.cat([valid[:, cached + last - places :], valid[:, cached - last :]], dim=1)
            embedded = self.memory_embedding(recalled)
        else:
            filled = (valid[:, -1] if mode == "rmt" else valid.any(dim=1))[:, None]
            embedded = recalled
        return torch.where(filled.repeat_interleave(m, dim=1)[:, :, None], embedded, initial)

    def read_ahead(self, summary: Summary) -> Tensor:
        """Compute retrieval queries of segments: the hidden state at the second T of [T | first j tokens | T].

        This is equation 1 of the paper; T is the learned summary prompt. With ``interface: adapted`` the query is read
        from [S | last tokens of the previous segment | T], S the learned attention sink.

        Args:
            summary: the tokens, for several segments of every row.

        Returns:
            ``[batch * segments, memory_tokens, dim]``.
        """
        hidden, query = self.read(summary, self.summary_prompt(summary.tokens.shape[0]))
        if not torch.is_grad_enabled():
            return query
        # weights that a summary does not need take part with weight zero: DeepSpeed mishandles those that miss a pass
        memories = query[:1, None].expand(-1, self.settings.last_memories + self.settings.recalled_memories, -1, -1)
        others = [self.backbone.logits(hidden[:1, :1])]
        others += self.memory_prompt(memories, torch.ones_like(memories[:, :, 0, 0]).bool(), "hmt", query[:1])[:1]
        others += [self.write_prompt(1)] if self.settings.interface == "adapted" else []
        return query + 0 * torch.stack([other.mean() for other in others]).mean()

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
        """Compute losses and logits of a segment from its tokens' hidden states.

        Args:
            part: the segment, with its labels.
            hidden: ``[batch, tokens, dim]``, those of tokens repeated from the previous segment included.
            with_loss: False returns losses of 0 and skips the output head.
            with_logits: return the logits too.
            backward_follows: the backward pass comes next, so logits may be kept for it instead of recomputed.
            by_token: return the loss of each token instead of their sum.

        Returns:
            Cross-entropy in nats ``[batch]`` (by token ``[batch, segment_length]``), and logits ``[batch,
            segment_length, vocabulary]`` of the segment's own tokens, or None.
        """
        hidden = hidden.gather(1, part.fresh[:, :, None].expand(-1, -1, hidden.shape[2]))
        logits = self.backbone.logits(hidden) if with_logits else None
        if not with_loss:
            return torch.zeros(len(hidden), device=hidden.device), logits
        head, vocabulary = self.backbone.logits, self.backbone.vocabulary
        how: dict[str, Any] = {"cross_entropy": self.cross_entropy, "backward_follows": backward_follows}
        how |= {"weights": part.weights, "by_token": by_token}
        return row_losses(head, hidden, part.labels, vocabulary, **how), logits
