"""Read tokens that follow those in a cache: write the memory of each segment that is full, and continue the last
segment.

The logits equal those of a single pass over all tokens so far. A row's open segment is its last one: the tokens whose
memory is not written yet.

Shapes: b batch, t new columns, q columns with logits, w tokens of a segment, p prompt tokens, L segment length, d
embedding width, v vocabulary, m memory tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache

from hmt_ds.backbones.model import CausalLM
from hmt_ds.backbones.transformers_internals import is_recurrent
from hmt_ds.inference.rows import Rows
from hmt_ds.inference.segment_cache import SegmentCache
from hmt_ds.memory.cell import HMT
from hmt_ds.memory.segments import Segment
from hmt_ds.memory.state import MemoryState

CHUNK = 16  # segments of a long document that are handled, and whose queries are read, at a time


class Wanted:
    """Collects the hidden states of the tokens whose logits are needed, while segments are read one by one.

    Args:
        rows: memories and open (last) segments before the new tokens.
        ids: token ids ``[batch, columns]`` of the columns that need logits.
        real: ``[batch, columns]`` bool, False on pads; None without pads.
        dim: embedding width.
        dtype: dtype of the hidden states.

    Attributes:
        at: ``[batch, columns]`` int64, position of each column's token, from the first token of the row's open segment.
        hidden: ``[batch, columns, dim]``, filled by :meth:`take`.
    """

    def __init__(self, rows: Rows, ids: Tensor, real: Tensor | None, dim: int, dtype: torch.dtype):
        numbers = torch.ones_like(ids) if real is None else real.long()
        self.at = (rows.counts()[:, None] + numbers.cumsum(dim=1) - 1).clamp(min=0)
        self.hidden = torch.zeros(*ids.shape, dim, dtype=dtype, device=ids.device)

    def take(self, hidden: Tensor) -> None:
        """Copy the hidden states of the tokens whose logits are needed from a segment that was just read.

        Args:
            hidden: ``[batch, tokens, dim]``, of the first tokens of each row's open segment (the last one, whose memory
                is not written yet).
        """
        width = hidden.shape[1]
        if width == 0:  # nothing but pads was read
            return
        there = take_columns(hidden, self.at.clamp(0, width - 1))
        inside = (self.at >= 0) & (self.at < width)
        self.hidden = torch.where(inside[:, :, None], there, self.hidden)


@dataclass(frozen=True)
class CachedReader:
    """Reads new tokens of every row of a batch, which follow the tokens that a cache holds.

    Attributes:
        hmt: the model.
        cache: memories and last segment of each row; updated by every call of :meth:`read`.
    """

    hmt: HMT
    cache: SegmentCache

    @property
    def backbone(self) -> CausalLM:
        """The model's backbone, a causal language model."""
        return cast(CausalLM, self.hmt.backbone)

    @property
    def rows(self) -> Rows:
        """The memories and last segments of the cache's rows; raises AssertionError if nothing was read yet."""
        assert self.cache.rows is not None
        return self.cache.rows

    def read(self, ids: Tensor, real: Tensor | None, first: int) -> Tensor:
        """Read new tokens, add them to the cache, and return their logits.

        Args:
            ids: token ids ``[batch, columns]``.
            real: ``[batch, columns]`` bool, False on pads, which may be anywhere and are skipped; None without pads.
            first: index of the first column whose logits are returned.

        Returns:
            Logits ``[batch, columns - first, vocabulary]``. A pad has the logits of the previous token in its row.

        Raises:
            ValueError: the number of rows is not a multiple of the cache's.
        """
        self.fit(ids)
        self.cache.seen += ids.shape[1]
        if real is None and self.keys_go_on(ids.shape[1]):
            self.cache.rows = self.rows.append(ids, None)
            return self.hmt.backbone.logits(self.cache.extend(self.backbone, self.backbone.embed(ids))[:, first:])
        step = CHUNK * self.hmt.settings.segment_length
        bounds = [*range(0, first, step), first]
        for begin, end in pairwise(bounds):
            self.append(ids[:, begin:end], None if real is None else real[:, begin:end], None)
        ids, real = ids[:, first:], None if real is None else real[:, first:]
        wanted = Wanted(self.rows, ids, real, self.backbone.dim, self.rows.state.memories.dtype)
        self.append(ids, real, wanted)
        wanted.take(self.read_open())
        return self.hmt.backbone.logits(wanted.hidden)

    def fit(self, ids: Tensor) -> None:
        """Give the cache as many rows as a batch has: create them, or repeat the cached ones (for beam search).

        Args:
            ids: token ids ``[batch, columns]``.

        Raises:
            ValueError: the number of rows is not a multiple of the cache's.
        """
        cache, settings = self.cache, self.hmt.settings
        if cache.rows is None:
            state = MemoryState.empty(
                len(ids),
                settings.memory_tokens,
                self.backbone.dim,
                settings.sensory_tokens,
                dtype=next(self.hmt.parameters()).dtype,
                device=ids.device,
            )
            cache.rows = Rows(state, state.tail[:, :0], (0,) * len(ids), (0,) * len(ids))
        elif len(ids) % cache.batch_size:
            raise ValueError(
                f"input_ids has {len(ids)} rows, but past_key_values has {cache.batch_size}: pass as many, or a "
                "multiple"
            )
        elif len(ids) != cache.batch_size:
            cache.batch_repeat_interleave(len(ids) // cache.batch_size)

    def keys_go_on(self, tokens: int) -> bool:
        """Return whether the cached keys and values remain valid when every row gets some more tokens.

        Args:
            tokens: number of new tokens per row.
        """
        settings, rows = self.hmt.settings, self.rows
        if self.cache.keys is None or max(rows.lengths) + tokens > settings.segment_length:
            return False
        # in the paper's interface a segment's own first tokens ask for what is recalled in front of them
        asks = settings.summarises and settings.interface == "paper"
        open_rows = zip(rows.lengths, rows.closed, strict=True)
        return not (asks and any(closed and n < settings.summary_length for n, closed in open_rows))

    def append(self, ids: Tensor, real: Tensor | None, wanted: Wanted | None) -> None:
        """Add tokens to each row's last segment, and write the memory of every segment that becomes full.

        Args:
            ids: token ids ``[batch, columns]``.
            real: ``[batch, columns]`` bool, False on pads; None without pads.
            wanted: collects the hidden states of tokens whose logits are needed; None if none are.
        """
        cache, length = self.cache, self.hmt.settings.segment_length
        known: Sequence[int] = self.rows.lengths if cache.keys is not None else ()
        cache.rows = self.rows.append(ids, real)
        while (segments := (max(self.rows.lengths) - 1) // length) > 0:
            if known and all(n == length for n, new in zip(known, self.rows.lengths, strict=True) if new > length):
                self.close(self.write_behind_keys(), wanted)
            else:
                for query in self.queries(min(segments, CHUNK)):
                    part, prompt = self.enter(query)
                    hidden, memory = self.hmt.read(part, prompt)
                    if wanted is not None:
                        wanted.take(take_columns(hidden, part.fresh))
                    self.close(memory, wanted)
            known = ()
        cache.drop_keys()

    def write_behind_keys(self) -> Tensor:
        """Return the memories of segments that are full, computed from their cached keys and values.

        Returns:
            ``[batch, memory tokens, dim]``.
        """
        assert self.cache.behind is not None
        return self.cache.extend(self.backbone, self.cache.behind) if self.cache.behind.shape[1] else self.cache.behind

    def close(self, memory: Tensor, wanted: Wanted | None) -> None:
        """Finish the first segment of every row that has more tokens than one segment: store its memory, drop its
        tokens.

        Args:
            memory: memories ``[batch, memory tokens, dim]`` of the rows' first segments.
            wanted: tokens whose logits are needed, whose positions are moved back by a segment; None if there are none.
        """
        cache, rows, length = self.cache, self.rows, self.hmt.settings.segment_length
        closes = torch.tensor([n > length for n in rows.lengths])
        if wanted is not None:
            wanted.at = wanted.at - length * closes.to(wanted.at.device)[:, None]
        cache.undo.append(rows.before_closing(closes, length))
        cache.rows = rows.close(closes, memory, self.hmt.settings)

    def queries(self, segments: int) -> list[Tensor | None]:
        """Return the retrieval queries of each row's next segments, computed in one batch.

        Args:
            segments: number of segments per row.

        Returns:
            A query ``[batch, memory tokens, dim]`` for each segment; None where the model retrieves nothing.
        """
        settings, state = self.hmt.settings, self.rows.state
        remembers = state.memories.shape[1] > 0
        if not settings.summarises or (segments == 1 and not remembers):
            return [None] * segments
        window = self.rows.window(settings.segment_length, segments)
        read = self.hmt.read_ahead(window.summary(0, segments, state.tail, settings))
        queries: list[Tensor | None] = [*read.unflatten(0, (-1, segments)).unbind(dim=1)]
        return queries if remembers else [None, *queries[1:]]

    def enter(self, query: Tensor | None) -> tuple[Segment, Tensor]:
        """Prepare the first segment of each row to be read by the model, with the last tokens of the segment before it.

        Args:
            query: the segment's retrieval query ``[batch, memory tokens, dim]``; None if the model retrieves nothing.

        Returns:
            The segment, and the memory prompt ``[batch, prompt tokens, dim]`` to read before it.
        """
        settings, state = self.hmt.settings, self.rows.state
        prompt, _ = self.hmt.memory_prompt(state.memories, state.valid, settings.mode, query)
        return self.rows.window(settings.segment_length).segment(0, state.tail, settings), prompt

    def read_open(self) -> Tensor:
        """Read each row's last segment, and cache its keys and values.

        Returns:
            Hidden states ``[batch, tokens, dim]``.
        """
        part, prompt = self.enter(*self.queries(1))
        if is_recurrent(self.backbone.model):  # it has no keys and values, and would carry pads on
            return take_columns(self.hmt.read(part, prompt)[0], part.fresh)
        cache, rows, k = self.cache, self.rows, self.hmt.settings.sensory_tokens
        widths = [n + k * (closed > 0) for n, closed in zip(rows.lengths, rows.closed, strict=True)]
        tokens = self.backbone.embed(part.tokens[:, : max(widths)])
        before, cache.behind = (x.to(tokens.dtype) for x in self.hmt.around(part, prompt))
        embeddings, real = torch.cat([before, tokens], dim=1), None
        # pads go in front, so that every row's next token comes in the next column
        pads = (max(widths) - part.lengths)[:, None]
        if min(widths) < max(widths):
            columns = torch.arange(embeddings.shape[1], device=pads.device) - pads
            real = columns >= 0
            embeddings = embeddings.gather(1, columns.clamp(min=0)[:, :, None].expand_as(embeddings))
        cache.keys = DynamicCache(config=self.backbone.config.get_text_config())
        hidden = cache.extend(self.backbone, embeddings, real)
        fresh = part.fresh[:, : max(rows.lengths)] + before.shape[1] + pads
        return take_columns(hidden, fresh.clamp(max=hidden.shape[1] - 1))


def take_columns(hidden: Tensor, columns: Tensor) -> Tensor:
    """Return the hidden states at given columns of each row, ``[batch, n, dim]``.

    Args:
        hidden: ``[batch, tokens, dim]``.
        columns: ``[batch, n]`` int64, indices below ``tokens``.
    """
    return hidden.gather(1, columns[:, :, None].expand(-1, -1, hidden.shape[2]))
