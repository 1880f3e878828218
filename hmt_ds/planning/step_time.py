"""Estimate the seconds of an optimizer step in a layout over GPUs, by activity: matrix products, messages, optimizer,
..."""

from dataclasses import dataclass
from math import ceil

from hmt_ds.memory.loss import LOGITS
from hmt_ds.planning.activations import bytes_per_position
from hmt_ds.planning.cluster import Fleet, Gpu
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.memory_parts import Memory

# Constants of the estimate. tests/benchmarks/PLAN.md names the measurements that they were fitted to.
MATRIX = 0.655  # share of the datasheet's rate that the layers' matrix products reach
ATTENTION = 0.40  # the same of attention scores
TRAFFIC = 1.3  # bytes moved by other kernels per byte of kept activations, compiled layers
UNCOMPILED = 2.0  # times as many without torch.compile
PASS = 85e-6  # seconds of a layer's pass that do not depend on its size
LAUNCH = 0.3e-3  # seconds in which the host launches a layer's forward pass, without CUDA graphs
HOOK = 0.47e-3  # seconds of DeepSpeed's hooks per weight and pass
LOGIT_TRAFFIC = 16  # bytes moved per logit, in each direction
SUM_TRAFFIC = 10  # bytes moved to add a gradient to its float32 sum
DELIVER_TRAFFIC = 130  # bytes moved per trained weight to hand its sum to DeepSpeed
STEP_TRAFFIC = 270  # bytes moved per trained weight of a rank's shard in clipping and optimizer step
TO_HOST = 15e9  # bytes per second from a GPU to host memory, while passes run
HOST_ADAM = 1.2e9  # weights per second that the host's Adam updates


@dataclass(frozen=True)
class Pass:
    """A forward or backward pass over a part of the model, by its sizes.

    Attributes:
        positions: number of token positions over all rows.
        context: number of positions of one row, which attend to each other.
        layers: number of layers.
        head: whether the pass computes logits and loss.
        tokens: number of positions that logits are computed for.
    """

    positions: int
    context: int
    layers: float
    head: bool = False
    tokens: int = 0


def forward_seconds(work: Work, layout: Layout, gpu: Gpu, part: Pass) -> float:
    """Estimate the seconds of a forward pass on a GPU.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        gpu: type of the GPU.
        part: the pass.
    """
    return pass_seconds(work, layout, gpu, part, matrix=1.0, attention=1.0, other=1.0)


def backward_seconds(work: Work, layout: Layout, gpu: Gpu, part: Pass) -> float:
    """Estimate the seconds of a backward pass, without recomputation; frozen weights need no gradients.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        gpu: type of the GPU.
        part: the pass.
    """
    matrix = 1.0 + work.size.trained_share
    seconds = pass_seconds(work, layout, gpu, part, matrix=matrix, attention=2.5, other=2.0)
    trained = work.size.trained * part.layers / work.size.layers
    return seconds + SUM_TRAFFIC * trained / gpu.bandwidth


def pass_seconds(
    work: Work, layout: Layout, gpu: Gpu, part: Pass, *, matrix: float, attention: float, other: float
) -> float:
    """Estimate the seconds of a forward or backward pass, whose costs are given as multiples of a forward pass's.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        gpu: type of the GPU.
        part: the pass.
        matrix: FLOPs of matrix products, relative to a forward pass.
        attention: FLOPs of attention scores, relative to a forward pass.
        other: time of other kernels, relative to a forward pass.
    """
    size = work.size
    products = 2 * size.layer * part.layers * part.positions * matrix / (MATRIX * gpu.peak)
    # each position attends to half of the others
    scores = 2 * size.attention_width * part.context * part.positions * part.layers * attention
    moved = bytes_per_position(work.size, "none", work.number_bytes) / size.layers * part.layers * part.positions
    kernels = TRAFFIC * (1.0 if layout.compiles else UNCOMPILED) * moved * other / gpu.bandwidth
    seconds = products + scores / (ATTENTION * gpu.peak) + kernels + PASS * part.layers * other
    if part.head:
        seconds += 2 * size.head * part.tokens * matrix / (MATRIX * gpu.peak)
        seconds += LOGIT_TRAFFIC * size.vocabulary * part.tokens * other / gpu.bandwidth
    return seconds if layout.replays(work) else max(seconds, LAUNCH * part.layers * other)


@dataclass(frozen=True)
class Planned:
    """A group of equal forward or backward passes in an estimated training step.

    Attributes:
        part: sizes of one pass.
        count: number of equal passes.
        backward: whether the passes are backward passes.
        again: whether the passes repeat a forward pass (recomputation).
    """

    part: Pass
    count: int
    backward: bool = False
    again: bool = False


def window_passes(work: Work, layout: Layout, memory: Memory) -> list[Planned]:
    """Return the forward and backward passes over one truncated-BPTT window, in the order in which they run.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        memory: the layout's memory, which decides what is recomputed.
    """
    settings, size, rows, depth = work.settings, work.size, layout.rows, work.depth
    length, tokens = settings.positions, rows * settings.segment_length
    plain = Pass(rows * length, length, size.layers)
    scored = Pass(rows * length, length, size.layers, head=True, tokens=tokens)
    repeated = 0 if settings.mode == "backbone" else max(0, depth - memory.kept_segments)
    passes = [Planned(scored, depth - repeated), Planned(plain, repeated), Planned(scored, repeated, again=True)]
    passes.append(Planned(scored, depth, backward=True))
    if layout.recompute == "segment+layer":
        passes.append(Planned(plain, depth, again=True))
    if tokens * size.vocabulary > LOGITS:  # logits of several chunks are computed twice
        passes.append(Planned(Pass(0, 0, 0, head=True, tokens=tokens), depth, again=True))
    if settings.summarises:
        batch = memory.summary_segments
        summary = Pass(rows * batch * summary_positions(settings), summary_positions(settings), size.layers)
        batches = ceil(depth / batch)
        passes += [Planned(summary, batches), Planned(summary, batches - memory.kept_summaries, again=True)]
        passes.append(Planned(summary, batches, backward=True))
    return [planned for planned in passes if planned.count]


@dataclass(frozen=True)
class StepTime:
    """The estimated time and network traffic of an optimizer step.

    Attributes:
        parts: seconds by activity, such as ``matrix products``.
        within, between: bytes that a GPU receives within its node, and that a node receives from others, in a step.
    """

    parts: dict[str, float]
    within: float
    between: float

    @property
    def seconds(self) -> float:
        """Duration of the whole optimizer step in seconds, as estimated."""
        return sum(self.parts.values())


def step_time(work: Work, layout: Layout, fleet: Fleet, memory: Memory) -> StepTime:
    """Estimate the time and traffic of an optimizer step in a layout without pipeline stages.

    Where every pass gathers or reduces, the host's hooks and the messages run beside the arithmetic, and the slowest of
    the three counts.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.
        memory: the layout's memory, which decides what is recomputed.
    """
    gpu, windows = fleet.gpu, layout.windows(work, fleet.count)
    spent = dict.fromkeys(("forward and backward", "recomputation", "DeepSpeed's hooks", "messages"), 0.0)
    sent = 0.0
    for planned in window_passes(work, layout, memory):
        seconds = (backward_seconds if planned.backward else forward_seconds)(work, layout, gpu, planned.part)
        spent["recomputation" if planned.again else "forward and backward"] += windows * planned.count * seconds
        if layout.reduction == "segment" and planned.part.layers:
            host = HOOK * work.size.weights * (2 if planned.backward else 1) * (layout.stage == 3 or planned.backward)
            size = bytes_of_pass(work, layout, backward=planned.backward)
            sent += windows * planned.count * size
            wire = collective_seconds(size, fleet)
            if layout.offloads_weights:  # every pass reads them again
                wire += work.number_bytes * work.size.parameters / fleet.count / TO_HOST
            spent["DeepSpeed's hooks"] += windows * planned.count * max(0.0, host - seconds)
            spent["messages"] += windows * planned.count * max(0.0, wire - max(host, seconds))
    at_end = bytes_at_end(work, layout)
    spent["messages"] += collective_seconds(at_end, fleet)
    if layout.offloaded:
        gradients = work.number_bytes * work.size.trained * layout.offloaded / fleet.count
        times = windows * sum(p.count for p in window_passes(work, layout, memory) if p.backward and p.part.layers)
        spent["gradients to the host"] = (times if layout.reduction == "segment" else 1) * gradients / TO_HOST
    spent["optimizer"] = optimizer_seconds(work, layout, fleet)
    return StepTime({name: seconds for name, seconds in spent.items() if seconds}, *traffic(sent + at_end, fleet))


def bytes_of_pass(work: Work, layout: Layout, *, backward: bool) -> float:
    """Return the bytes that DeepSpeed gathers and reduces during one pass, if gradients are reduced after every
    segment.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        backward: whether the pass is a backward pass, which also reduces gradients.
    """
    gathered = work.number_bytes * work.size.parameters if layout.stage == 3 else 0.0
    return gathered + (work.number_bytes * work.size.trained if backward else 0.0)


def bytes_at_end(work: Work, layout: Layout) -> float:
    """Return the bytes that an optimizer step gathers and reduces over the GPUs after its last pass.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
    """
    trained, number = work.size.trained, work.number_bytes
    if layout.reduction == "segment":
        return 0.0 if layout.stage == 3 else number * trained
    reduced = {0: 2 * 4, 1: 2 * 4}.get(layout.stage, number)  # stages 0 and 1 all-reduce float32 sums
    gathered = number * (work.size.parameters if layout.stage == 3 else trained) if layout.stage else 0
    return reduced * trained + gathered


def collective_seconds(size: float, fleet: Fleet) -> float:
    """Estimate the seconds of an all-gather or a reduce-scatter over all GPUs.

    Args:
        size: bytes that are gathered or reduced.
        fleet: type and number of GPUs, nodes and network.
    """
    return fleet.cluster.all_gather_seconds(size, fleet.per_node, fleet.nodes)


def traffic(size: float, fleet: Fleet) -> tuple[float, float]:
    """Return the bytes that one GPU and one node receive in collectives over all GPUs.

    Args:
        size: bytes that are gathered or reduced.
        fleet: type and number of GPUs, nodes and network.

    Returns:
        Bytes that a GPU receives within its node, and that a node receives from others.
    """
    return size * (1 - 1 / fleet.per_node), size * (1 - 1 / fleet.nodes)


def optimizer_seconds(work: Work, layout: Layout, fleet: Fleet) -> float:
    """Estimate the seconds of clipping gradients and updating weights at the end of a step, on the GPU and on the host.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.
    """
    trained = work.size.trained
    shard = trained / (fleet.count if layout.stage else 1)
    on_gpu = STEP_TRAFFIC * (shard * (1 - layout.offloaded)) / fleet.gpu.bandwidth
    on_gpu += DELIVER_TRAFFIC * trained / fleet.gpu.bandwidth * (layout.reduction == "step")
    return on_gpu + shard * layout.offloaded * fleet.per_node / HOST_ADAM
