"""The interface of a causal language model that the memory is put around.

Shapes: b batch, t positions, d embedding width, v vocabulary.
"""

from typing import Protocol

from torch import Tensor


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

    def decode(self, embeddings: Tensor, mask: Tensor | None, parts: Tensor | None = None) -> Tensor:
        """``[b, t, d]`` -> last hidden states ``[b, t, d]``, after the final norm. ``mask [b, t]`` bool or None.

        With ``parts`` ``[b, t]`` a position sees those of its own part alone, and counts from its beginning.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """``[b, t, d]`` -> ``[b, t, v]``."""
