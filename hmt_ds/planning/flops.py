"""FLOPs of a training step, and the share of a device's peak rate that they use."""

import statistics

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
    """Return a device's datasheet rate in FLOP/s, or None if it is not listed."""
    return next((rate for name, rate in PEAK_FLOPS.items() if name in device_name), None)


def positions_per_token(settings: MemorySettings) -> float:
    """Return the positions the backbone runs on per fresh token: prompts, sensory tokens and summaries included."""
    return (settings.positions + summary_positions(settings)) / settings.segment_length


def summary_positions(settings: MemorySettings) -> int:
    """Return the positions of a segment's summary pass; 0 without summaries."""
    return settings.summary_length + 2 * settings.memory_tokens if settings.summarises else 0


def useful_flops_per_token(parameters: int, trained: int, settings: MemorySettings) -> float:
    """Return the FLOPs of the forward and backward pass per fresh token.

    2 per parameter and position forward, 2 backward for the activations, 2 more for each trained weight. Recomputation
    and attention scores are not counted.

    Args:
        parameters: of the whole model.
        trained: how many of them are trained.
    """
    return (4 * parameters + 2 * trained) * positions_per_token(settings)


def repeated_positions(settings: MemorySettings, plan: RecomputePlan, segments: int, *, layers_again: bool) -> int:
    """Return how many positions per row of a window the layers recompute.

    Args:
        plan: what keeps its activations.
        segments: of the window.
        layers_again: whether activation checkpointing recomputes every layer in its backward pass (segment+layer).
    """
    every = segments * (settings.positions + summary_positions(settings))
    again = int(layers_again) * every
    if settings.mode == "backbone":  # nothing crosses a boundary: each segment's backward pass follows its forward pass
        return again
    segments_again = segments - min(segments, max(1, plan.kept_segments))
    size = plan.summary_segments
    batches = [min(size, segments - first) for first in range(0, segments, size)]
    summaries_again = sum(batches[: max(0, len(batches) - plan.kept_summaries)])
    return again + segments_again * settings.positions + summaries_again * summary_positions(settings)


def matrix_rate(device: torch.device, size: int = 8192, repeats: int = 20) -> float:
    """Measure the FLOP/s of a GPU's bf16 matrix product, as a median.

    On random numbers: a GPU multiplies zeros faster than real activations.

    Args:
        size: of the square matrices.
        repeats: timed products, after a quarter as many untimed ones.
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


def rates(tokens: float, seconds: float, useful: float, executed: float, peaks: dict[str, float]) -> dict[str, float]:
    """Return the speed of one rank.

    Args:
        tokens: fresh tokens.
        useful: FLOPs without recomputation.
        executed: FLOPs with recomputation.
        peaks: peak FLOP/s of its device, by source (``measured``, ``datasheet``).
    """
    result = {
        "tokens_per_second_per_gpu": tokens / seconds,
        "useful_tflops_per_second": useful / seconds / 1e12,
        "executed_tflops_per_second": executed / seconds / 1e12,
    }
    for name, peak in peaks.items():
        result |= {f"mfu_{name}": useful / seconds / peak, f"hfu_{name}": executed / seconds / peak}
    return result
