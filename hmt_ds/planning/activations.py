"""A lower bound on activation memory, to refuse recipes that cannot fit before anything starts."""

from typing import Protocol

from hmt_ds.memory import MemorySettings

GIB = 2**30


class LayerSizes(Protocol):
    """The sizes of a backbone from which activation memory is estimated; every transformers configuration has them.

    A typing Protocol.
    """

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's hidden states."""

    @property
    def num_hidden_layers(self) -> int:
        """Number of the backbone's decoder layers."""


def bytes_per_position(config: LayerSizes, recompute: str, size: int) -> int:
    """Return a lower bound on the bytes of activations that all layers keep for the backward pass, per token position.

    A layer keeps the inputs and results of its matrix products: about six times the hidden size and three times the
    MLP's. Measured on an H100 with compiled layers: 1.24 MiB in bf16 for a Llama of 1.1B; this formula gives 1.22.

    Args:
        config: configuration of the backbone.
        recompute: activation checkpointing: ``none``, ``selective`` or ``segment+layer``; ``segment`` and ``auto``
            count like ``none``.
        size: bytes of a number: 2 in bf16 and fp16, 4 in fp32.
    """
    dim, layers = config.hidden_size, config.num_hidden_layers
    mlp = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * dim
    numbers = {"segment+layer": dim, "selective": 4 * dim + 2 * mlp}.get(recompute, 6 * dim + 3 * mlp)
    return layers * numbers * size


def kept_bytes(
    config: LayerSizes, settings: MemorySettings, recompute: str, *, batch: int, depth: int, size: int
) -> int:
    """Return a lower bound on the peak bytes of activations on one GPU, of segments that gradients flow through.

    Args:
        config: configuration of the backbone.
        settings: settings of the memory.
        recompute: the recipe's ``compute.recompute``: ``auto``, ``none``, ``selective``, ``segment`` or
            ``segment+layer``.
        batch: rows (sequences) per rank.
        depth: number of segments that gradients flow through.
        size: bytes of a number: 2 in bf16 and fp16, 4 in fp32.
    """
    segments = depth if recompute in ("none", "selective") else 1
    return segments * batch * settings.positions * bytes_per_position(config, recompute, size)
