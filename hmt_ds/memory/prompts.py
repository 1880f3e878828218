"""Learned embeddings around the tokens, and memories as embeddings.

Shapes: m memory tokens, p prompt tokens, d embedding width.
"""

import torch
from torch import Tensor, nn


class Prompt(nn.Module):
    """Learned embeddings ``[m, d]``, read through a lookup so that ZeRO-3 gathers them as it does any layer."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.embeddings = nn.Embedding(tokens, dim)

    def forward(self, batch: int) -> Tensor:
        """The prompt for every row, ``[batch, m, d]``."""
        device = self.embeddings.weight.device
        # accelerate's offloading leaves a weight on the meta device between its uses; its hook moves real ids only
        rows = torch.arange(self.embeddings.num_embeddings, device="cpu" if device.type == "meta" else device)
        return self.embeddings(rows.expand(batch, -1))


class MemoryEmbedding(nn.Module):
    """Normalized memories ``[b, p, d]`` to input embeddings: scale * memory + shift, per channel.

    A raw last hidden state is many times longer than a token embedding, and most of it is common to all segments: in
    front of the tokens it becomes an attention sink in which memories differ by a hundredth.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, memory: Tensor) -> Tensor:
        """``[b, p, d]`` -> ``[b, p, d]``."""
        return self.scale * memory + self.shift


def normalized(memories: Tensor) -> Tensor:
    """Memories ``[.., d]`` with a root mean square of 1, zero where they are zero."""
    exact = memories.to(torch.promote_types(memories.dtype, torch.float32))
    return nn.functional.rms_norm(exact, exact.shape[-1:], eps=1e-6).to(memories.dtype)
