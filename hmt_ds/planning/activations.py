"""How much memory activations take at least: enough to refuse what cannot work, before anything starts."""

from typing import Any

from hmt_ds.memory import MemorySettings

GIB = 2**30


def bytes_per_position(config: Any, recompute: str, size: int) -> int:
    """What a position keeps for the backward pass, at least, in all layers.

    A layer keeps the results of its matrix products and what went into them: about six times the hidden size and three
    times the MLP's. Measured on an H100 with compiled layers: 1.24 MiB in bf16 for a Llama of 1.1B, of which this
    formula finds 1.22.

    Args:
        config: the backbone's.
        recompute: ``none``, ``selective`` or ``segment+layer``; ``segment`` and ``auto`` are like ``none``.
        size: bytes of a number.
    """
    dim, layers = config.hidden_size, config.num_hidden_layers
    mlp = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * dim
    numbers = {"segment+layer": dim, "selective": 4 * dim + 2 * mlp}.get(recompute, 6 * dim + 3 * mlp)
    return layers * numbers * size


def kept_bytes(config: Any, settings: MemorySettings, recompute: str, *, batch: int, depth: int, size: int) -> int:
    """What the activations of a window take at their peak, at least.

    Args:
        batch: rows of a rank.
        depth: segments of a window.
        size: bytes of a number.
    """
    segments = depth if recompute in ("none", "selective") else 1
    return segments * batch * settings.positions * bytes_per_position(config, recompute, size)
