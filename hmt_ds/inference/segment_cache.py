"""The cache that transformers' generation passes from call to call: memory, open segment, and its keys and values.

What it holds follows from the tokens alone, never from how they came (at once, one by one, after a rollback), so that
every way of decoding in transformers can use it: sampling, beams, candidates of an assistant.

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
    """What is known of the tokens read so far, instead of their keys and values. Empty at first.

    Attributes:
        rows: memory, and tokens of the open segments; None while nothing was read.
        keys: keys and values of the open segments with what stands in front of them; None where they must be read
            again.
        mask: ``[b, t]`` bool, False on pads in front of ``keys``; None without pads.
        behind: ``[b, m, d]``, what the backbone reads behind a segment when it closes.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.rows: Rows | None = None
        self.seen = 0
        self.undo: deque[Rows] = deque(maxlen=BORDERS)
        self.drop_keys()

    def drop_keys(self) -> None:
        """Forget keys and values: the open segments are read again."""
        self.keys: DynamicCache | None = None
        self.mask: Tensor | None = None
        self.behind: Tensor | None = None

    def extend(self, backbone: CausalLM, embeddings: Tensor, real: Tensor | None = None) -> Tensor:
        """Read embeddings behind the cached ones of every row.

        Args:
            embeddings: ``[b, t, d]``.
            real: ``[b, t]`` bool, False on pads; None without pads.

        Returns:
            Hidden states ``[b, t, d]``.
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
        """Return the number of columns read, pads included. A document that was read before and saved counts as 0."""
        return self.seen

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Return -1: there is no longest sequence."""
        return -1

    def __len__(self) -> int:
        return 1  # not the number of layers, which would make an empty cache false

    @property
    def batch_size(self) -> int:
        """The number of rows; -1 while nothing was read."""
        return -1 if self.rows is None else len(self.rows.lengths)

    max_batch_size = batch_size  # the name in earlier versions of transformers

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[n]``, in this order; rows may repeat."""
        if self.rows is None:
            return
        self.rows = self.rows.select(rows)
        self.undo = deque((before.select(rows) for before in self.undo), maxlen=BORDERS)
        if self.keys is not None:
            self.keys.batch_select_indices(rows)
            self.mask = None if self.mask is None else self.mask.index_select(0, rows)
            self.behind = None if self.behind is None else self.behind.index_select(0, rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows that go on in a beam search."""
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, which are numbers or a mask."""
        self.select(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row so many times, one after the other."""
        if self.rows is not None:
            rows = torch.arange(self.batch_size, device=self.rows.tokens.device)
            self.select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything that was read."""
        self.__init__()  # type: ignore[misc]

    def crop(self, tokens: int) -> None:
        """Take back the last tokens: those of an assistant that were not accepted.

        Args:
            tokens: minus the number of tokens; a positive number is what stays, as transformers 5.0 has it.

        Raises:
            ValueError: if they reach back over more borders between segments than are kept.
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
            raise ValueError(f"{number} tokens cannot be taken back: only those of the last {BORDERS} segments can")
        self.rows, self.undo, self.seen = rows.shortened(number), undo, self.seen - number
        self.drop_keys()
