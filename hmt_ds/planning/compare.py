"""Estimate a training step on a cluster with a pipeline, ZeRO-1 and ZeRO-3, to see where its time goes.

Counted are matrix products, messages and GPU memory. Not counted are attention scores, norms, the recall, the
optimizer's arithmetic (equal for every method), kernel launches and ZeRO-3's hooks, which cost more than its messages
within a node: the estimate for ZeRO-3 is a best case.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.pipeline.schedule import Kind, graphs_to_keep, pipeline_schedule, summary_group_size
from hmt_ds.planning.activations import bytes_per_position
from hmt_ds.planning.cluster import Cluster
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.plan_options import CompareOptions
from hmt_ds.planning.shapes import SHAPES, ModelShape
from hmt_ds.planning.simulate import Durations, Link, Machine, Timeline, peak_stashed_bytes, simulate

BF16 = 2  # bytes
USABLE = 0.92  # of a GPU's memory, as parallel/activation_budget.py plans
# Bytes of a trained weight. Replicated: bf16 weight and float32 gradient sum (ZeRO-3 shards both). Sharded: float32
# weight and two moments, as parallel/compute_choice.py counts.
REPLICATED, SHARDED = BF16 + 4, 12
GATHERED = 0.1  # of the memory: two of ZeRO-3's leaf modules and their gradients, a fortieth each


@dataclass(frozen=True)
class Job:
    """A training job to estimate: all weights trained in bf16 by Adam, with float32 gradient sums.

    Attributes:
        shape: sizes of the backbone.
        settings: settings of the memory.
        segments: number of segments per window.
        rows: rows per optimizer step and GPU.
    """

    shape: ModelShape
    settings: MemorySettings
    segments: int = 8
    rows: int = 2

    def forward_flops(self, parameters: float, *, summary: bool = False) -> float:
        """Return the FLOPs of one row's forward pass over a segment: 2 per parameter and position.

        Args:
            parameters: number of parameters.
            summary: whether to count the pass over the segment's summary instead of the segment.
        """
        return 2 * parameters * (summary_positions(self.settings) if summary else self.settings.positions)

    @property
    def tokens(self) -> int:
        """Number of tokens read per optimizer step and GPU, without those repeated from the previous segment."""
        return self.rows * self.segments * self.settings.segment_length


@dataclass(frozen=True)
class Estimate:
    """The estimated optimizer step of a job with a pipeline, ZeRO-1 or ZeRO-3.

    Attributes:
        layout: description of the pipeline or ZeRO stage.
        seconds: duration of the step.
        tokens_per_second: tokens read per second and GPU, without those repeated from the previous segment.
        idle: fraction of the step in which a GPU runs no matrix products.
        bytes: memory of the fullest GPU.
        fits: whether ``bytes`` fits into a GPU.
    """

    layout: str
    seconds: float
    tokens_per_second: float
    idle: float
    bytes: float
    fits: bool


def comparison(options: CompareOptions) -> list[tuple[int, str, Estimate | None]]:
    """Estimate a job with ZeRO-1, a pipeline and ZeRO-3 on clusters of several sizes.

    Args:
        options: options of `hmt-ds plan --compare`.

    Returns:
        Number of GPUs, name of the method, and the estimate; None if no pipeline is possible.
    """
    shape = SHAPES[options.shape]
    settings = MemorySettings(options.segment_length, recall_dim=shape.hidden_size)
    job = Job(shape, settings, options.segments, options.rows)
    cluster = Cluster(1e9 * options.between_nodes, rate=1e12 * options.rate)
    methods = {"ZeRO-1": zero1, "pipeline": best_pipeline, "ZeRO-3": zero3}
    return [(gpus, name, method(job, cluster, gpus)) for gpus in options.gpu_counts for name, method in methods.items()]


def estimate(job: Job, cluster: Cluster, layout: str, seconds: float, arithmetic: float, size: float) -> Estimate:
    """Return the estimate of a job in one layout, from the duration and the memory of its optimizer step.

    Args:
        job: the job.
        cluster: the cluster.
        layout: name of the layout, for tables, such as ``ZeRO-1``.
        seconds: duration of the step.
        arithmetic: seconds of the step in which a GPU runs matrix products.
        size: bytes of memory of the fullest GPU.
    """
    fits = size <= USABLE * cluster.memory
    return Estimate(layout, seconds, job.tokens / seconds, 1 - arithmetic / seconds, size, fits)


def best_pipeline(job: Job, cluster: Cluster, gpus: int) -> Estimate | None:
    """Estimate a job on pipelines with the best number of stages.

    Args:
        job: the job.
        cluster: the cluster.
        gpus: number of GPUs.

    Returns:
        The fastest estimate that fits, or else the one with the least memory; None if no number of stages is possible.
    """
    found = [pipeline(job, cluster, gpus, stages) for stages in stage_counts(job.shape, cluster, gpus)]
    return min(found, key=lambda e: (not e.fits, e.seconds if e.fits else e.bytes), default=None)


def stage_counts(shape: ModelShape, cluster: Cluster, gpus: int) -> Iterator[int]:
    """Yield the possible numbers of pipeline stages, ascending.

    They divide the layers and the GPUs, and divide the GPUs of a node or fill whole nodes.

    Args:
        shape: sizes of the backbone.
        cluster: the cluster.
        gpus: number of GPUs.
    """
    for stages in range(2, min(shape.num_hidden_layers, gpus) + 1):
        straddles = cluster.gpus_per_node % stages and stages % cluster.gpus_per_node
        if not straddles and gpus % stages == 0 and shape.num_hidden_layers % stages == 0:
            yield stages


def pipeline(job: Job, cluster: Cluster, gpus: int, stages: int) -> Estimate:
    """Estimate pipelines with the given number of stages, data-parallel to each other with ZeRO-1.

    A micro-batch is one row. As many forward passes keep their graphs as fit (parallel/pipeline/stage_budget.py); the
    others are recomputed. At the end of a step the pipelines reduce-scatter float32 gradient sums and all-gather bf16
    weights.

    Args:
        job: the job.
        cluster: the cluster.
        gpus: number of GPUs.
        stages: number of stages of each pipeline.
    """
    node, pipelines = cluster.gpus_per_node, gpus // stages
    layers, head = job.shape.num_hidden_layers // stages, job.shape.head_parameters
    weights = layers * job.shape.layer_parameters + head  # the first stage has the embedding, the last one the head
    states = (REPLICATED + SHARDED / pipelines) * weights
    graph = job.settings.positions * bytes_per_position(replace(job.shape, num_hidden_layers=layers), "none", BF16)
    window, kept = pipeline_window(job, cluster, stages, graph, USABLE * cluster.memory - states)
    in_node = max(1, min(node, gpus) // stages)
    seconds = window.window_time + cluster.all_gather_seconds(
        REPLICATED * weights, in_node, pipelines // in_node, sharing=min(node, stages)
    )
    busy = sum(timed.stop - timed.start for actions in window.stages for timed in actions) / stages
    size = states + max(window.stashed_bytes) + max(kept, graph)
    return estimate(job, cluster, f"{stages} stages x {pipelines}", seconds, busy, size)


@lru_cache(maxsize=64)
def pipeline_window(job: Job, cluster: Cluster, stages: int, graph: float, free_bytes: float) -> tuple[Timeline, float]:
    """Simulate a window of one pipeline on consecutive ranks, with as many graphs kept as fit.

    Args:
        job: the job.
        cluster: the cluster.
        stages: number of pipeline stages.
        graph: bytes of the autograd graph of a pass over a segment.
        free_bytes: bytes of GPU memory for stashed inputs and graphs.

    Returns:
        The simulated window, and the bytes of the graphs that a stage keeps.
    """
    node, settings = cluster.gpus_per_node, job.settings
    within, between = (
        Link(cluster.latency_within, cluster.within_node),
        Link(cluster.latency_between, cluster.between_nodes),
    )
    # consecutive stages are on consecutive GPUs, so the last GPU of each node has a slow link to the next stage
    links = [within if (p + 1) % node else between for p in range(stages - 1)]
    position = BF16 * job.shape.hidden_size
    micro_batches = job.rows * stages
    share = summary_positions(settings) / settings.positions
    group = summary_group_size(stages, job.segments, micro_batches, share) if share else 1
    message_bytes = {
        Kind.SEGMENT: position * settings.positions,
        Kind.SUMMARY: position * summary_positions(settings) * group,
        Kind.RECALL: position * settings.prompt_tokens(),
    }
    times = [stage_durations(job, cluster, stages, group, last=p == stages - 1) for p in range(stages)]
    schedule = pipeline_schedule(stages, job.segments, micro_batches, mode=settings.mode, summary_group=group)
    # stashed inputs have priority; graphs get what the fullest stage has left
    for_graphs = free_bytes - max(peak_stashed_bytes(actions, message_bytes) for actions in schedule)
    sizes = {Kind.SEGMENT: graph, Kind.SUMMARY: graph * share * group}
    kept = [graphs_to_keep(actions, sizes, for_graphs) for actions in schedule]
    wraparound = within if stages <= node else between
    machine = Machine(times, links, wraparound, message_bytes, kept_graphs=kept)
    return simulate(schedule, machine, settings.mode), sum(sizes[action.kind] for action in kept[0])


def stage_durations(job: Job, cluster: Cluster, stages: int, summary_group: int, *, last: bool) -> Durations:
    """Return the seconds of one pipeline stage's forward and backward passes.

    Args:
        job: the job.
        cluster: the cluster.
        stages: number of pipeline stages.
        summary_group: number of micro-batches per summary pass.
        last: whether the stage is the last one, whose backward passes include the head.
    """
    layers = job.shape.num_hidden_layers // stages * job.shape.layer_parameters
    segment = job.forward_flops(layers) / cluster.rate
    summary = summary_group * job.forward_flops(layers, summary=True) / cluster.rate
    head = job.forward_flops(job.shape.head_parameters) / cluster.rate if last else 0.0
    forward = {(Kind.SEGMENT, False): segment, (Kind.SUMMARY, False): summary, (Kind.RECALL, False): 0.0}
    backward = {(Kind.SEGMENT, True): 3 * (segment + head), (Kind.SUMMARY, True): 3 * summary, (Kind.RECALL, True): 0.0}
    return forward | backward


def zero1(job: Job, cluster: Cluster, gpus: int) -> Estimate:
    """Estimate a job at ZeRO-1 with ``compute.reduction step``: each GPU has all weights and float32 gradient sums.

    Args:
        job: the job.
        cluster: the cluster.
        gpus: number of GPUs.
    """
    parameters = job.shape.parameters
    size = (REPLICATED + SHARDED / gpus) * parameters
    in_node = min(gpus, cluster.gpus_per_node)
    reduction = cluster.all_gather_seconds(REPLICATED * parameters, in_node, gpus // in_node)
    return data_parallel(job, cluster, "whole", size, reduction=reduction)


def zero3(job: Job, cluster: Cluster, gpus: int) -> Estimate:
    """Estimate a job at ZeRO-3 with ``compute.reduction segment``: every pass all-gathers, backward passes also reduce.

    Args:
        job: the job.
        cluster: the cluster.
        gpus: number of GPUs.
    """
    parameters = job.shape.parameters
    size = (REPLICATED + SHARDED) * parameters / gpus + GATHERED * cluster.memory
    in_node = min(gpus, cluster.gpus_per_node)
    gather = cluster.all_gather_seconds(BF16 * parameters, in_node, gpus // in_node)
    return data_parallel(job, cluster, "sharded", size, gather=gather)


def data_parallel(
    job: Job, cluster: Cluster, layout: str, states: float, *, gather: float = 0.0, reduction: float = 0.0
) -> Estimate:
    """Estimate a step in which each GPU trains on its own rows, as many at a time as fit.

    Messages overlap with the arithmetic of their pass, so a pass takes the longer of the two. As many of the last
    segments keep their activations as fit (parallel/activation_budget.py); the others are recomputed. Summaries run in
    batches no larger than a segment, and are recomputed.

    Args:
        job: the job.
        cluster: the cluster.
        layout: name of the layout, for tables, such as ``ZeRO-1``.
        states: bytes of weights, gradient sums and optimizer states on a GPU.
        gather: seconds to all-gather all weights, or to reduce all gradients, in each pass.
        reduction: seconds of the gradient reduction at the end of the step.
    """
    free_bytes = USABLE * cluster.memory - states
    row = job.settings.positions * bytes_per_position(job.shape, "none", BF16)
    at_once = max((n for n in range(1, job.rows + 1) if job.rows % n == 0 and n * row <= free_bytes), default=1)
    # one segment has its graph during its own backward pass in any case
    kept = max(1, min(job.segments, int(free_bytes // (at_once * row))))
    passes = [(flops * at_once / cluster.rate, sent) for flops, sent in window_passes(job, kept, gather)]
    times = job.rows // at_once
    seconds = times * sum(max(work, sent) for work, sent in passes) + reduction
    arithmetic = times * sum(work for work, _ in passes)
    rows = "" if at_once == job.rows else f", {at_once} of {job.rows} rows at a time"
    return estimate(job, cluster, f"{layout}{rows}", seconds, arithmetic, states + kept * at_once * row)


def window_passes(job: Job, kept: int, gather: float) -> Iterator[tuple[float, float]]:
    """Yield the FLOPs per row and the seconds of messages of each forward and backward pass over a window.

    Args:
        job: the job.
        kept: number of segments that keep their activations.
        gather: seconds to all-gather all weights; a backward pass gathers and reduces.
    """
    layers = job.shape.num_hidden_layers * job.shape.layer_parameters
    without_head = job.forward_flops(layers)
    with_head = job.forward_flops(layers + job.shape.head_parameters)
    for n in range(job.segments):
        if n < job.segments - kept:
            yield without_head, gather  # the next segment needs no logits
        yield with_head, gather
        yield 2 * with_head, 2 * gather
    if job.settings.summarises:
        share = summary_positions(job.settings) / job.settings.positions
        batch = max(n for n in range(1, job.segments + 1) if job.segments % n == 0 and (n == 1 or n * share <= 1))
        summaries = batch * job.forward_flops(layers, summary=True)
        for _ in range(job.segments // batch):
            yield from [(summaries, gather), (summaries, gather), (2 * summaries, 2 * gather)]
