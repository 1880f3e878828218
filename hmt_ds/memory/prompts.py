"""Learned prompt embeddings around a segment's tokens, and the embedding of memories as input of the backbone."""

import torch
from torch import Tensor, nn


class Prompt(nn.Module):
    """A learned prompt of ``tokens`` embeddings, stored as an nn.Embedding so that ZeRO-3 gathers it like any layer."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.embeddings = nn.Embedding(tokens, dim)

    def forward(self, batch: int) -> Tensor:
        """Return the learned prompt once for every row, ``[batch, tokens, dim]``.

        Args:
            batch: number of rows.
        """
        device = self.embeddings.weight.device
        # accelerate's offloading leaves a weight on the meta device between its uses; its hook moves real ids only
        rows = torch.arange(self.embeddings.num_embeddings, device="cpu" if device.type == "meta" else device)
        return self.embeddings(rows.expand(batch, -1))


class MemoryEmbedding(nn.Module):
    """Map normalized memories to the range of input embeddings: scale * memory + shift, per channel, both learned.

    A raw last hidden state is many times longer than a token embedding and nearly the same for all segments. In front
    of the tokens it would act as an attention sink in which memories differ by a hundredth.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, memory: Tensor) -> Tensor:
        """Scale and shift normalized memories so that the backbone can read them as input embeddings.

        Args:
            memory: ``[batch, tokens, dim]``.

        Returns:
            A tensor of the same shape.
        """
        return self.scale * memory + self.shift


def normalized(memories: Tensor) -> Tensor:
    """Scale memories to a root mean square of 1 over the last dimension; zeros stay zero.

    Args:
        memories: ``[.., dim]``.
    """
    exact = memories.to(torch.promote_types(memories.dtype, torch.float32))
    return nn.functional.rms_norm(exact, exact.shape[-1:], eps=1e-6).to(memories.dtype)
