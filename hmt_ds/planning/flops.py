"""Arithmetic of a training step, and what share of a device's it uses."""

from hmt_ds.memory import MemorySettings

# dense bf16 matrix rate by the datasheets, FLOP/s
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "V100": 125e12,
    "4090": 165e12,
}


def peak_flops(device_name: str) -> float | None:
    """A device's datasheet rate in FLOP/s, or None where we do not know it."""
    return next((rate for name, rate in PEAK_FLOPS.items() if name in device_name), None)


def positions_per_token(settings: MemorySettings) -> float:
    """How many positions the backbone reads for one fresh token: prompts, sensory tokens and summaries included."""
    summary = settings.summary_length + 2 * settings.memory_tokens if settings.mode == "hmt" else 0
    return (settings.positions + summary) / settings.segment_length


def useful_flops_per_token(parameters: int, trained: int, settings: MemorySettings) -> float:
    """FLOPs of forward and backward for one fresh token.

    2 per parameter and position forward, 2 backward through the activations, 2 more for each trained weight.
    Recomputation and attention scores are not counted.

    Args:
        parameters: of the whole model.
        trained: how many of them are trained.
    """
    return (4 * parameters + 2 * trained) * positions_per_token(settings)
