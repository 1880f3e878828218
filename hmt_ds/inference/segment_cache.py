"""Cache for transformers' generation: memories, tokens of the last segment, and its keys and values.

The content depends only on the tokens, never on how they arrived (at once, one by one, after a rollback), so every
decoding method of transformers works: sampling, beam search, assisted decoding.

Shapes: b batch, t positions of the backbone's sequence, m memory tokens, d embedding width.
"""

from collections import deque

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from hmt_ds.backbones.model import CausalLM
from hmt_ds.inference.rows import Rows

BORDERS = 3  # how many borders between segments can be undone: assistants propose some tokens, not whole segments


class SegmentCache(Cache):
    """Cache of the tokens read so far: memories, and one open segment (the last, whose memory is not written yet) per
    row.

    Attributes:
        rows: memories, and tokens of the open segments; None while nothing was read.
        keys: keys and values of the open segments and the prompts before them; None if they must be computed again.
        mask: ``[batch, positions]`` bool, False on pads in ``keys``; None without pads.
        behind: ``[batch, memory tokens, dim]``, embeddings that the backbone reads after a segment to write its memory.
        seen: number of columns read so far, pads included.
        undo: state before each of the last three segments was finished, to restore it when tokens are removed.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.rows: Rows | None = None
        self.seen = 0
        self.undo: deque[Rows] = deque(maxlen=BORDERS)
        self.drop_keys()

    def drop_keys(self) -> None:
        """Drop the cached keys and values, so that each row's last segment is read again at the next call."""
        self.keys: DynamicCache | None = None
        self.mask: Tensor | None = None
        self.behind: Tensor | None = None

    def extend(self, backbone: CausalLM, embeddings: Tensor, real: Tensor | None = None) -> Tensor:
        """Run the backbone on embeddings that follow each row's cached positions, and cache their keys and values.

        Args:
            backbone: the model's backbone.
            embeddings: ``[batch, positions, dim]``.
            real: ``[batch, positions]`` bool, False on pads; None without pads.

        Returns:
            Hidden states ``[batch, positions, dim]``.
        """
        assert self.keys is not None
        new, positions = embeddings.shape[1], None
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, new), value=True)
        elif real is not None:
            self.mask = real
        if self.mask is not None:
            positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
        return backbone.extend(embeddings, self.keys, self.mask, positions)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of token columns read so far, pads included; a document loaded from a memory file does not
        count.

        Args:
            layer_idx: not used; part of transformers' interface.
        """
        return self.seen

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Return -1, which tells transformers that sequences may have any length.

        Args:
            layer_idx: not used; part of transformers' interface.
        """
        return -1

    def __len__(self) -> int:
        return 1  # not the number of layers, which would make an empty cache false

    @property
    def batch_size(self) -> int:
        """Number of rows in the cache; -1 while nothing was read."""
        return -1 if self.rows is None else len(self.rows.lengths)

    max_batch_size = batch_size  # the name in earlier versions of transformers

    def select(self, rows: Tensor) -> None:
        """Keep only some rows of the cache, in the given order.

        Args:
            rows: indices of the rows, ``[n]`` int64; an index may repeat.
        """
        if self.rows is None:
            return
        self.rows = self.rows.select(rows)
        self.undo = deque((before.select(rows) for before in self.undo), maxlen=BORDERS)
        if self.keys is not None:
            self.keys.batch_select_indices(rows)
            self.mask = None if self.mask is None else self.mask.index_select(0, rows)
            self.behind = None if self.behind is None else self.behind.index_select(0, rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows of the best beams (beam search).

        Args:
            beam_idx: indices of the rows, ``[batch]`` int64.
        """
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows of the cache.

        Args:
            indices: indices of the rows, ``[n]`` int64, or a boolean mask ``[batch]``.
        """
        self.select(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the cache, the copies of a row next to each other.

        Args:
            repeats: number of copies of each row.
        """
        if self.rows is not None:
            rows = torch.arange(self.batch_size, device=self.rows.tokens.device)
            self.select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Empty the cache, as if nothing had been read."""
        self.__init__()  # type: ignore[misc]

    def crop(self, tokens: int) -> None:
        """Remove the last tokens of every row, such as an assistant model's rejected candidates.

        Args:
            tokens: minus the number of tokens to remove; a positive number is how many to keep (transformers 5.0).

        Raises:
            ValueError: the tokens to remove reach back further than the last three segments, which alone can be
                restored.
        """
        number = -tokens if tokens <= 0 else self.seen - tokens
        if number <= 0 or self.rows is None:
            return
        rows = self.rows
        undo = self.undo.copy()
        while number >= min(rows.lengths) and undo:  # the last segment stays open, whatever is taken back
            # join what the last closed segments held with what followed
            own = torch.arange(rows.tokens.shape[1], device=rows.tokens.device) < rows.counts()[:, None]
            rows = undo.pop().append(rows.tokens, own)
        if number > min(rows.lengths):
            raise ValueError(
                f"cannot remove the last {number} tokens: only those of the last {BORDERS} segments can be; "
                "read the document again"
            )
        self.rows, self.undo, self.seen = rows.shortened(number), undo, self.seen - number
        self.drop_keys()
