"""What the backbone reads for one segment: its tokens between a prompt and the positions that become its memory.

See equations 2, 4 and 5 of the paper (arXiv 2405.06067); ``interface: adapted`` is this project's variant.
"""

import torch
from torch import Tensor, nn

from hmt_ds.memory.backbone import Backbone
from hmt_ds.memory.prompts import Prompt
from hmt_ds.memory.segments import Segment, Summary, places_in_parts
from hmt_ds.memory.settings import MemorySettings, Mode


class PromptedBackbone(nn.Module):
    """A backbone that reads a segment's tokens between learned or given prompts, and returns the new memory.

    Args:
        backbone: the causal language model.
        settings: settings of the memory.
    """

    def __init__(self, backbone: nn.Module, settings: MemorySettings):
        super().__init__()
        self.backbone: Backbone = backbone  # type: ignore[assignment]
        self.settings = settings
        dim = self.backbone.dim
        adapted, memory = settings.interface == "adapted", settings.mode != "backbone"
        if adapted:
            self.sink = Prompt(1, dim)
        if memory:
            self.initial_prompt = Prompt(settings.memory_tokens, dim)
        if memory and adapted:
            self.write_prompt = Prompt(settings.memory_tokens, dim)

    def read(self, part: Segment | Summary, prompt: Tensor, mode: Mode | None = None) -> tuple[Tensor, Tensor]:
        """Run the backbone on a segment between its prompts: [prompt | tokens | prompt | padding] (equations 2, 4 and
        5).

        Args:
            part: the segment, or a summary (the tokens that retrieval queries are made of).
            prompt: ``[batch, prompt_tokens, dim]``, the memory prompt; 0 tokens without memory.
            mode: memory mode; default: that of the settings.

        Returns:
            Hidden states of the tokens ``[batch, tokens, dim]``, and of the positions after them, which are the new
            memory ``[batch, memory_tokens, dim]``.
        """
        return self.leave(part, self.decode(part, self.enter(part, prompt), mode), mode)

    def enter(self, part: Segment | Summary, prompt: Tensor) -> Tensor:
        """Embed everything that the backbone reads for a segment or summary: ``[batch, positions, dim]``, padding at
        the end.

        The embeddings behind the tokens follow each row's last token directly, so a causal model never sees padding
        first.

        Args:
            part: the segment, or a summary (the tokens that retrieval queries are made of).
            prompt: ``[batch, prompt_tokens, dim]``, the memory prompt; 0 tokens without memory.
        """
        tokens = self.backbone.embed(part.tokens)
        before, behind = (x.to(tokens.dtype) for x in self.around(part, prompt))
        if isinstance(part, Segment) and part.parts is not None:
            tokens, behind = self.with_beginnings(part, part.parts, tokens, prompt, behind)
        at = positions_behind(part, before.shape[1], behind.shape[1])[:, :, None].expand_as(behind)
        return torch.cat([before, tokens, torch.zeros_like(behind)], dim=1).scatter(1, at, behind)

    def decode(self, part: Segment | Summary, embeddings: Tensor, mode: Mode | None = None) -> Tensor:
        """Run the backbone's layers on embedded tokens and prompts; return hidden states, both ``[batch, positions,
        dim]``.

        Args:
            part: the segment, or a summary (the tokens that retrieval queries are made of), that was embedded.
            embeddings: ``[batch, positions, dim]``.
            mode: memory mode; default: that of the settings.
        """
        mask, parts = part.mask, part.parts if isinstance(part, Segment) else None
        if mask is not None:
            mask = nn.functional.pad(mask, self.lengths_around(part, mode), value=True)
        if parts is None:
            return self.backbone.decode(embeddings, mask)
        before, behind = self.lengths_around(part, mode)
        parts = torch.cat([nn.functional.pad(parts, (before, 0)), parts[:, -1:].expand(-1, behind)], dim=1)
        return self.backbone.decode(embeddings, mask, parts)

    def leave(self, part: Segment | Summary, hidden: Tensor, mode: Mode | None = None) -> tuple[Tensor, Tensor]:
        """Split hidden states into those of the tokens, and those of the positions behind them, which are the new
        memory.

        Args:
            part: the segment, or a summary (the tokens that retrieval queries are made of).
            hidden: ``[batch, positions, dim]``, of prompts, tokens and padding.
            mode: memory mode; default: that of the settings.

        Returns:
            ``[batch, tokens, dim]`` and ``[batch, memory_tokens, dim]``.
        """
        before, behind = self.lengths_around(part, mode)
        at = positions_behind(part, before, behind)[:, :, None].expand(-1, -1, hidden.shape[2])
        return hidden[:, before : before + part.tokens.shape[1]], hidden.gather(1, at)

    def around(self, part: Segment | Summary, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings to put in front of a segment's tokens, and right behind them.

        With ``interface: paper`` both are the prompt; with ``adapted`` a learned attention sink and the prompt in
        front, and learned write embeddings behind. The sink is there even without memory, so that a baseline has it
        too.

        Args:
            part: the segment, or a summary (the tokens that retrieval queries are made of).
            prompt: ``[batch, prompt_tokens, dim]``, the memory prompt; 0 tokens without memory.

        Returns:
            ``[batch, .., dim]`` in front, and ``[batch, memory_tokens, dim]`` behind.
        """
        if self.settings.interface == "paper":
            return prompt, prompt
        sink = self.sink(len(prompt))
        if isinstance(part, Summary):
            return sink, prompt
        behind = self.write_prompt(len(prompt)) if prompt.shape[1] else prompt
        return torch.cat([sink, prompt.to(sink.dtype)], dim=1), behind

    def lengths_around(self, part: Segment | Summary, mode: Mode | None) -> tuple[int, int]:
        """Return the number of embeddings in front of a segment's (or summary's) tokens, and the number right behind
        them.

        Args:
            part: the segment, or a summary (the tokens that retrieval queries are made of).
            mode: memory mode; None for that of the settings.
        """
        size = self.settings
        if isinstance(part, Summary):
            return size.sink_tokens or size.memory_tokens, size.memory_tokens
        return size.sink_tokens + size.prompt_tokens(mode), size.write_tokens(mode)

    def with_beginnings(
        self, part: Segment, parts: Tensor, tokens: Tensor, prompt: Tensor, behind: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fill the gap before each further document of a segment with the embeddings that precede a document's first
        segment.

        Args:
            part: the segment, in which several documents share rows.
            parts: ``[batch, tokens]`` int64, number of the document at each position.
            tokens: ``[batch, tokens, dim]``, token embeddings with gaps.
            prompt: ``[batch, prompt_tokens, dim]``, the memory prompt of the segment's first document.
            behind: ``[batch, memory_tokens, dim]``, embeddings behind the tokens of a row whose last document began
                earlier.

        Returns:
            The embeddings of tokens and gaps, and the embeddings behind each row's last document, in the shapes given.
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


def positions_behind(part: Segment | Summary, before: int, behind: int) -> Tensor:
    """Return the index in the sequence of each embedding that is put behind a row's tokens, ``[batch, behind]``.

    Args:
        part: the segment, or a summary (the tokens that retrieval queries are made of).
        before: number of embeddings in front of the tokens.
        behind: number of embeddings behind the tokens.
    """
    return (before + part.lengths)[:, None] + torch.arange(behind, device=part.lengths.device)
