"""Read tokens behind those in a cache: close the segments that they fill, and continue the open ones.

The logits are those that one reading of all tokens so far gives at the same positions.

Shapes: b batch, t new columns, q columns with logits, w tokens of a segment, p prompt tokens, L segment length,
d embedding width, v vocabulary.
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
    """The hidden states of the columns that get logits, collected segment by segment.

    Attributes:
        at: ``[b, q]``, where each column's token is in its row's open segment.
        hidden: ``[b, q, d]``.
    """

    def __init__(self, rows: Rows, ids: Tensor, real: Tensor | None, dim: int, dtype: torch.dtype):
        numbers = torch.ones_like(ids) if real is None else real.long()
        self.at = (rows.counts()[:, None] + numbers.cumsum(dim=1) - 1).clamp(min=0)
        self.hidden = torch.zeros(*ids.shape, dim, dtype=dtype, device=ids.device)

    def take(self, hidden: Tensor) -> None:
        """Take what is wanted of the hidden states ``[b, w, d]`` of the first tokens of each row."""
        width = hidden.shape[1]
        if width == 0:  # nothing but pads was read
            return
        there = take_columns(hidden, self.at.clamp(0, width - 1))
        inside = (self.at >= 0) & (self.at < width)
        self.hidden = torch.where(inside[:, :, None], there, self.hidden)


@dataclass(frozen=True)
class CachedReader:
    """Reads new tokens of every row with a model, behind those that a cache holds."""

    hmt: HMT
    cache: SegmentCache

    @property
    def backbone(self) -> CausalLM:
        """The model's backbone."""
        return cast(CausalLM, self.hmt.backbone)

    @property
    def rows(self) -> Rows:
        """Where the rows of the cache stand."""
        assert self.cache.rows is not None
        return self.cache.rows

    def read(self, ids: Tensor, real: Tensor | None, first: int) -> Tensor:
        """Read new tokens; the cache then holds them too.

        Args:
            ids: ``[b, t]``.
            real: ``[b, t]`` bool, False on pads, which are left out wherever they are; None without pads.
            first: the first column with logits.

        Returns:
            ``[b, t - first, v]``. A pad has the logits of its row's last token before it.

        Raises:
            ValueError: if the cache has another number of rows.
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
        """Make the cache one of as many rows as ``ids`` has: an empty one, or each row as often as needed (beams)."""
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
            raise ValueError(f"past_key_values has {cache.batch_size} rows, and input_ids {len(ids)}")
        elif len(ids) != cache.batch_size:
            cache.batch_repeat_interleave(len(ids) // cache.batch_size)

    def keys_go_on(self, tokens: int) -> bool:
        """Return whether the cached keys and values still hold when so many tokens follow in every row."""
        settings, rows = self.hmt.settings, self.rows
        if self.cache.keys is None or max(rows.lengths) + tokens > settings.segment_length:
            return False
        # in the paper's interface a segment's own first tokens ask for what is recalled in front of them
        asks = settings.summarises and settings.interface == "paper"
        open_rows = zip(rows.lengths, rows.closed, strict=True)
        return not (asks and any(closed and n < settings.summary_length for n, closed in open_rows))

    def append(self, ids: Tensor, real: Tensor | None, wanted: Wanted | None) -> None:
        """Add tokens ``[b, t]``, and close all segments that they fill; take what is wanted of their hidden states."""
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
        """Return the memories ``[b, m, d]`` of open segments that the cached keys and values cover to their end."""
        assert self.cache.behind is not None
        return self.cache.extend(self.backbone, self.cache.behind) if self.cache.behind.shape[1] else self.cache.behind

    def close(self, memory: Tensor, wanted: Wanted | None) -> None:
        """Close the first segment of all rows that have more tokens than one; ``memory`` is theirs, ``[b, m, d]``."""
        cache, rows, length = self.cache, self.rows, self.hmt.settings.segment_length
        closes = torch.tensor([n > length for n in rows.lengths])
        if wanted is not None:
            wanted.at = wanted.at - length * closes.to(wanted.at.device)[:, None]
        cache.undo.append(rows.before_closing(closes, length))
        cache.rows = rows.close(closes, memory, self.hmt.settings)

    def queries(self, segments: int) -> list[Tensor | None]:
        """Return the queries ``[b, m, d]`` of each row's next segments, read in one batch: no query needs a memory."""
        settings, state = self.hmt.settings, self.rows.state
        remembers = state.memories.shape[1] > 0
        if not settings.summarises or (segments == 1 and not remembers):
            return [None] * segments
        window = self.rows.window(settings.segment_length, segments)
        read = self.hmt.read_ahead(window.summary(0, segments, state.tail, settings))
        queries: list[Tensor | None] = [*read.unflatten(0, (-1, segments)).unbind(dim=1)]
        return queries if remembers else [None, *queries[1:]]

    def enter(self, query: Tensor | None) -> tuple[Segment, Tensor]:
        """Return each row's first segment behind its border, and the memory prompt for it ``[b, p, d]``."""
        settings, state = self.hmt.settings, self.rows.state
        prompt, _ = self.hmt.memory_prompt(state.memories, state.valid, settings.mode, query)
        return self.rows.window(settings.segment_length).segment(0, state.tail, settings), prompt

    def read_open(self) -> Tensor:
        """Read the open segments, with new keys and values; return hidden states of their tokens ``[b, w, d]``."""
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
    """Return the hidden states ``[b, n, d]`` of these columns ``[b, n]``."""
    return hidden.gather(1, columns[:, :, None].expand(-1, -1, hidden.shape[2]))
