"""FLOPs of a training step, and the fraction of a device's peak rate that they use (MFU)."""

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
    """Return a GPU's peak FLOP/s of dense bf16 matrix products by its datasheet; None if its name is not listed.

    Args:
        device_name: the driver's name, such as ``NVIDIA H100 80GB HBM3``.
    """
    return next((rate for name, rate in PEAK_FLOPS.items() if name in device_name), None)


def positions_per_token(settings: MemorySettings) -> float:
    """Return how many positions the backbone computes per token of a segment; above 1.

    Positions are also prompts, tokens repeated from the previous segment, and the passes that compute retrieval
    queries.

    Args:
        settings: settings of the memory.
    """
    return (settings.positions + summary_positions(settings)) / settings.segment_length


def summary_positions(settings: MemorySettings) -> int:
    """Return the number of positions of the pass that computes a segment's retrieval query; 0 if there is no such pass.

    Args:
        settings: settings of the memory.
    """
    return settings.summary_positions if settings.summarises else 0


def useful_flops_per_token(parameters: int, trained: int, settings: MemorySettings) -> float:
    """Return the FLOPs of forward and backward passes per token, without recomputation and attention scores.

    2 per parameter and position forward, 2 backward for the activations, and 2 more for each trained weight.

    Args:
        parameters: number of parameters of the whole model.
        trained: number of trained parameters.
        settings: settings of the memory.
    """
    return (4 * parameters + 2 * trained) * positions_per_token(settings)


def repeated_positions(settings: MemorySettings, plan: RecomputePlan, segments: int, *, layers_again: bool) -> int:
    """Return how many positions per row the layers recompute in the backward pass, because activations were not kept.

    Args:
        settings: settings of the memory.
        plan: how many segments and passes for retrieval queries keep their activations.
        segments: number of segments that gradients flow through.
        layers_again: whether the backward pass recomputes each layer once more (compute.recompute: segment+layer).
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
    """Measure the FLOP/s of a GPU's bf16 matrix product; return the median.

    The matrices are random: a GPU multiplies zeros faster than real activations.

    Args:
        device: the GPU.
        size: rows and columns of the matrices.
        repeats: number of timed products, after a quarter as many untimed ones.
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
    """Return the speed of a rank in tokens and FLOPs per second, and as fractions of peak rates (MFU), by name.

    Args:
        tokens: number of tokens read; tokens repeated from the previous segment are not counted.
        seconds: duration in which the tokens were read.
        useful: FLOPs in that time, without recomputation.
        executed: FLOPs in that time, with recomputation.
        peaks: peak FLOP/s of the device, by source (``measured``, ``datasheet``).

    Returns:
        ``tokens_per_second_per_gpu``, ``useful_tflops_per_second``, ``executed_tflops_per_second``, and for each peak
        the fraction (0 to 1) that useful and executed FLOPs reach, such as ``mfu_measured`` and ``hfu_measured``.
    """
    result = {
        "tokens_per_second_per_gpu": tokens / seconds,
        "useful_tflops_per_second": useful / seconds / 1e12,
        "executed_tflops_per_second": executed / seconds / 1e12,
    }
    for name, peak in peaks.items():
        result |= {f"mfu_{name}": useful / seconds / peak, f"hfu_{name}": executed / seconds / peak}
    return result
