"""Arithmetic of a training step, and what share of a device's it uses."""

import statistics
from typing import Any

import torch

from hmt_ds.memory import MemorySettings, RecomputePlan

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
    return (settings.positions + summary_positions(settings)) / settings.segment_length


def summary_positions(settings: MemorySettings) -> int:
    """How many positions the backbone reads for a segment's summary."""
    return settings.summary_length + 2 * settings.memory_tokens if settings.mode == "hmt" else 0


def useful_flops_per_token(parameters: int, trained: int, settings: MemorySettings) -> float:
    """FLOPs of forward and backward for one fresh token.

    2 per parameter and position forward, 2 backward through the activations, 2 more for each trained weight.
    Recomputation and attention scores are not counted.

    Args:
        parameters: of the whole model.
        trained: how many of them are trained.
    """
    return (4 * parameters + 2 * trained) * positions_per_token(settings)


def repeated_positions(settings: MemorySettings, plan: RecomputePlan, segments: int, *, layers_again: bool) -> int:
    """How many positions of one row of a window the layers read forward more than once.

    Args:
        plan: what is kept.
        segments: of the window.
        layers_again: whether each layer is read forward once more when it goes backward (segment+layer).
    """
    every = segments * (settings.positions + summary_positions(settings))
    again = int(layers_again) * every
    if settings.mode == "backbone":  # nothing crosses a border: each segment goes backward as soon as it is read
        return again
    segments_again = segments - min(segments, max(1, plan.kept_segments))
    size = plan.summary_segments
    batches = [min(size, segments - first) for first in range(0, segments, size)]
    summaries_again = sum(batches[: max(0, len(batches) - plan.kept_summaries)])
    return again + segments_again * settings.positions + summaries_again * summary_positions(settings)


def matrix_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of a GPU's bf16 matrix product on random numbers: the median of some. Zeros would be faster than work is.

    Args:
        size: of the square matrices.
        repeats: products that are timed, after a quarter as many that are not.
    """
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out, cuda, marks = torch.empty_like(one), torch.get_device_module(device), []
    for _ in range(repeats + repeats // 4):
        marks.append([cuda.Event(enable_timing=True) for _ in range(2)])
        marks[-1][0].record()
        torch.mm(one, other, out=out)
        marks[-1][1].record()
    cuda.synchronize()
    seconds = [start.elapsed_time(stop) / 1000 for start, stop in marks[repeats // 4 :]]
    return 2 * size**3 / statistics.median(seconds)


def rates(tokens: float, seconds: float, useful: float, executed: float, peaks: dict[str, float]) -> dict[str, Any]:
    """Speed of one rank.

    Args:
        tokens: fresh tokens that it read.
        useful: FLOPs that it had to do.
        executed: FLOPs that it did.
        peaks: FLOP/s that its device could do, by where that is known from.
    """
    result = {
        "tokens_per_second_per_gpu": tokens / seconds,
        "useful_tflops_per_second": useful / seconds / 1e12,
        "executed_tflops_per_second": executed / seconds / 1e12,
    }
    for name, peak in peaks.items():
        result |= {f"mfu_{name}": useful / seconds / peak, f"hfu_{name}": executed / seconds / peak}
    return result
