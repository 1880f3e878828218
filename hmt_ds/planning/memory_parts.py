"""Estimate the memory of a layout over GPUs, by part (weights, gradients, activations, ...), on each GPU and host."""

from dataclasses import dataclass, replace
from math import ceil

from hmt_ds.memory.loss import LOGITS
from hmt_ds.parallel.activation_budget import MARGIN
from hmt_ds.parallel.deepspeed_config.fill import BUCKET
from hmt_ds.planning.activations import GIB, bytes_per_position
from hmt_ds.planning.cluster import Fleet
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.layout import Layout, Work

PACKED = 0.52  # bytes of a weight in 4 bits, with its share of the scales
OUTSIDE = 1.5 * GIB  # CUDA's and NCCL's own memory
MASTER, MOMENTS, SUM = 4, 8, 4  # bytes of a trained weight: float32 copy, Adam's two moments, gradient sum
SEGMENT_BUCKET = 5 * 10**8  # gradients in a bucket where every backward pass reduces, DeepSpeed's default
BUCKETS = 2  # of them at a time
GRAPH = 1.02  # bytes of a segment's graph per byte of its layers: embeddings, recall and last norm
LOGIT_BYTES = 8  # of a logit: its value, and the gradient in float32 or two numbers of 16 bits
LEAF_SHARE, LEAF_GROUPS = 1 / 40, 3  # of the GPU's memory for a group of layers; two are gathered, one has gradients
# Bytes of a trained weight of the rank's shard in DeepSpeed's step: gradients, and a flat copy. Stage 3 has the first
# already and steps part by part.
STEP_COPIES = {"step": 8, "segment": 4}
HOST_BYTES, HOST_BASE = 24, 8 * GIB  # of an offloaded weight: states, gradients, page-locked buffers; of a process


@dataclass(frozen=True)
class Memory:
    """The estimated memory of a layout on its fullest GPU, in bytes.

    Attributes:
        parts: bytes by part, at the moment of the peak of forward and backward passes.
        step_peak: peak bytes during the reduction and the optimizer step.
        host: bytes of host memory on each node.
        kept_segments: number of segments (or of a pipeline's passes) that keep their activations for the backward pass.
        summary_segments: number of segments whose retrieval queries are computed in one batch.
        kept_summaries: number of such batches that keep their activations for the backward pass.
        graph: bytes of the activations of one segment.
        limit: bytes of all parts up to which activations are kept; a margin below `most`.
        most: bytes that a GPU can hold.
        host_most: bytes that the host memory of each node can hold.
    """

    parts: dict[str, float]
    step_peak: float
    host: float
    kept_segments: int
    summary_segments: int
    kept_summaries: int
    graph: float
    limit: float
    most: float
    host_most: float

    @property
    def peak(self) -> float:
        """Peak bytes of an optimizer step on the fullest GPU."""
        return max(sum(self.parts.values()), self.step_peak)

    @property
    def fits(self) -> bool:
        """Whether the peak fits into the GPU's memory together with the safety margin that training keeps free."""
        return self.peak <= self.limit and self.host <= self.host_most

    @property
    def tight(self) -> bool:
        """Whether the peak fits into the GPU's memory, but without the safety margin that training keeps free.

        The margin is as wide as the usual error of the estimate.
        """
        return self.limit < self.peak <= self.most and self.host <= self.host_most


def states(work: Work, layout: Layout, gpus: int, *, rank_parameters: float | None = None) -> dict[str, float]:
    """Return the bytes of weights, gradients and optimizer states on a GPU, by part.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        gpus: number of GPUs.
        rank_parameters: number of parameters of a pipeline stage; None for the whole model.

    Returns:
        Bytes by part: ``weights``, ``gradients`` (sums), ``optimizer`` (states) and ``buffers``.
    """
    total = work.size.parameters if rank_parameters is None else rank_parameters
    trained = total * work.size.trained_share
    ranks = layout.data_ranks(gpus)
    optimizer_ranks = ranks if layout.stage else 1
    # stage 0, and stages 1 and 2 with the optimizer offloaded, keep weights in float32 and compute in autocast
    full = layout.stage == 0 or (layout.stage < 3 and layout.offloaded)
    number = 4 if full else work.number_bytes
    states = (MOMENTS if number == 4 else MASTER + MOMENTS) * trained / optimizer_ranks * (1 - layout.offloaded)
    weights, sums = number * total - (number - PACKED) * work.size.packed, SUM * trained
    buckets = BUCKETS * number * min(trained, BUCKET)
    if layout.reduction == "segment":
        sums = SUM * trained / (ranks if layout.stage >= 2 else 1)
        if layout.offloaded:
            sums *= 1 - layout.offloaded
        buckets = BUCKETS * number * min(trained, SEGMENT_BUCKET)
    elif layout.stage == 3:
        weights += number * total / ranks
    if layout.stage == 3 and layout.reduction == "segment":
        weights = 0.0 if layout.offloads_weights else number * total / ranks
    return {"weights": weights, "gradients": sums, "optimizer": states, "buffers": buckets}


def leaf_bytes(work: Work, layout: Layout, capacity: float) -> float:
    """Return the bytes of the layers that ZeRO-3 holds gathered at one time, with their gradients.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        capacity: bytes of a GPU's memory.
    """
    if layout.stage < 3 or layout.reduction == "step":
        return 0.0
    layer = work.size.layer * work.number_bytes
    auto = max(1, min(work.size.layers, int(capacity * LEAF_SHARE / layer)))
    return LEAF_GROUPS * layer * (layout.leaf_layers or auto)


def summary_batch(work: Work) -> int:
    """Return for how many segments retrieval queries are computed in one batch in the first steps of a run.

    It is the largest divisor of the number of segments with which the batch has no more positions than one segment.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
    """
    share = summary_positions(work.settings) / work.settings.positions
    return max(n for n in range(1, work.depth + 1) if work.depth % n == 0 and (n == 1 or n * share <= 1))


def activations(work: Work, layout: Layout, positions: int, layers: float) -> float:
    """Return the bytes of activations that one forward pass keeps for its backward pass.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        positions: number of token positions of the pass, over all rows.
        layers: number of layers on the GPU.
    """
    shape = replace(work.size, layers=1)
    kept = GRAPH * positions * layers * bytes_per_position(shape, layout.recompute, work.number_bytes)
    if layout.recompute == "segment+layer":  # the layer that is being recomputed has a whole graph
        kept += positions * bytes_per_position(shape, "none", work.number_bytes)
    return kept


def memory_of(work: Work, layout: Layout, fleet: Fleet) -> Memory:
    """Estimate the GPU and host memory of a layout without pipeline stages, with as many activations kept as fit.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.
    """
    settings, size = work.settings, work.size
    parts = states(work, layout, fleet.count)
    parts["buffers"] += leaf_bytes(work, layout, fleet.gpu.memory)
    rows = layout.rows
    graph = activations(work, layout, rows * settings.positions, size.layers)
    summary = activations(work, layout, rows * summary_positions(settings), size.layers)
    parts["logits"] = LOGIT_BYTES * min(LOGITS, rows * settings.segment_length * size.vocabulary)
    memories = settings.memory_tokens * (work.depth + settings.kept_memories) if settings.mode != "backbone" else 0
    parts["buffers"] += activations(work, replace(layout, recompute="none"), rows * settings.positions, 1)
    parts["memory cache"] = 3.0 * memories * rows * size.hidden_size * work.number_bytes
    fixed = sum(parts.values())
    batch, limit = summary_batch(work), MARGIN * fleet.gpu.memory - OUTSIDE
    step_extra = step_copies(work, layout, fleet.count)
    replays = layout.replays(work)
    room = limit - fixed - (step_extra if replays else 0)  # CUDA graphs never free their memory
    kept, batch, kept_summaries = plan_recomputation(work, layout, graph, summary, room, batch)
    parts["activations"] = max(1, kept) * graph
    parts["summaries"] = max(0, kept_summaries) * batch * summary
    if work.settings.summarises and not kept_summaries:  # one batch at a time, in the place of freed segments
        parts["summaries"] = max(0.0, batch * summary - kept * graph)
    held = parts["activations"] + parts["summaries"] if replays else 0
    step_peak = fixed - parts["logits"] + step_extra + held
    host = HOST_BASE * fleet.per_node + HOST_BYTES * layout.offloaded * size.trained * fleet.per_node / fleet.count
    if layout.offloads_weights:
        host += work.number_bytes * size.parameters / fleet.nodes
    return Memory(
        parts, step_peak, host, kept, batch, kept_summaries, graph, limit, fleet.gpu.memory - OUTSIDE, fleet.host
    )


def step_copies(work: Work, layout: Layout, gpus: int) -> float:
    """Return the bytes that DeepSpeed allocates on a GPU only for the gradient reduction and the optimizer step.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        gpus: number of GPUs.
    """
    if layout.stage == 3 or layout.offloaded:
        return 0.0
    return STEP_COPIES[layout.reduction] * work.size.trained / (gpus if layout.stage else 1)


def plan_recomputation(
    work: Work, layout: Layout, graph: float, summary: float, room: float, batch: int
) -> tuple[int, int, int]:
    """Choose how many segments keep their activations for the backward pass; all others are recomputed.

    Likewise for summaries, the shorter passes that compute segments' retrieval queries.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        graph: bytes of a segment's activations.
        summary: bytes of the activations of one segment's summary.
        room: bytes that activations may take.
        batch: number of summaries per batch in the first steps of a run.

    Returns:
        Number of segments that keep their activations, of summaries in a batch, and of summary batches that keep their
        activations.
    """
    depth = work.depth
    if work.settings.mode == "backbone":
        return 1, 1, 0
    if layout.recompute in ("none", "selective"):
        return depth, depth, 1 if work.settings.summarises else 0
    if layout.recompute != "auto":
        return 1, batch, 0
    kept = max(1, min(depth, int(room // graph)))
    if not work.settings.summarises:
        return kept, 1, 0
    larger = [n for n in range(1, depth + 1) if depth % n == 0 and n * summary <= kept * graph]
    batch = max([batch, *larger])
    left = room - kept * graph
    kept_summaries = min(ceil(depth / batch), int(left // (batch * summary))) if kept == depth else 0
    return kept, batch, max(0, kept_summaries)
