"""The interface of the causal language model (backbone) that a Hierarchical Memory Transformer puts a memory around."""

from typing import Protocol

from torch import Tensor


class Backbone(Protocol):
    """The interface (typing Protocol) of the causal language model that a memory is put around."""

    @property
    def dim(self) -> int:
        """Width of the embeddings and of the last hidden states."""

    @property
    def vocabulary(self) -> int:
        """Number of logits per position (the vocabulary's size)."""

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids ``[batch, positions]`` as input embeddings ``[batch, positions, dim]``."""

    def decode(self, embeddings: Tensor, mask: Tensor | None, parts: Tensor | None = None) -> Tensor:
        """Run the layers and the final norm on input embeddings; return hidden states, both ``[batch, positions,
        dim]``.

        Args:
            embeddings: ``[batch, positions, dim]``.
            mask: ``[batch, positions]`` bool, False at positions that attention must not see; None: all may be seen.
            parts: ``[batch, positions]`` int64, the number of the document at each position. A position attends only to
                its own document, and position ids count from the document's start. None: one document per row.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head: hidden states ``[batch, positions, dim]`` -> logits ``[batch, positions,
        vocabulary]``."""
