"""Estimate a training step on a cluster with a pipeline, from its simulated schedule."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from hmt_ds.parallel.pipeline.schedule import Kind, graphs_to_keep, pipeline_schedule, summary_group_size
from hmt_ds.planning.activations import bytes_per_position
from hmt_ds.planning.cluster import Cluster
from hmt_ds.planning.compare_job import BF16, REPLICATED, SHARDED, USABLE, Estimate, Job, estimate
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.shapes import ModelShape
from hmt_ds.planning.simulate import Durations, Link, Machine, Timeline, peak_stashed_bytes, simulate


def best_pipeline(job: Job, cluster: Cluster, gpus: int) -> Estimate | None:
    """Estimate a training job on pipelines with the best number of stages.

    Args:
        job: the training job.
        cluster: the cluster.
        gpus: number of GPUs.

    Returns:
        The fastest estimate that fits, or else the one with the least memory; None if no number of stages is possible.
    """
    found = [pipeline(job, cluster, gpus, stages) for stages in stage_counts(job.shape, cluster, gpus)]
    return min(found, key=lambda e: (not e.fits, e.seconds if e.fits else e.bytes), default=None)


def stage_counts(shape: ModelShape, cluster: Cluster, gpus: int) -> Iterator[int]:
    """Yield the possible numbers of pipeline stages, ascending.

    They divide the model's layers and the number of GPUs, and either divide the GPUs of a node or fill whole nodes.

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
    """Estimate a training job on pipelines with a given number of stages, data-parallel to each other with ZeRO-1.

    A micro-batch is one row. As many forward passes keep their autograd graphs as fit into memory; the others are
    recomputed. At the end of a step the pipelines reduce-scatter float32 gradient sums and all-gather bf16 weights.

    Args:
        job: the training job.
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
    """Simulate the forward and backward passes of one pipeline on consecutive ranks, with as many graphs kept as fit.

    The passes are those over one truncated-BPTT window, the segments that gradients flow through.

    Args:
        job: the training job.
        cluster: the cluster.
        stages: number of pipeline stages.
        graph: bytes of the autograd graph of a pass over a segment.
        free_bytes: bytes of GPU memory for stashed inputs and graphs.

    Returns:
        The simulated timeline, and the bytes of the graphs that a stage keeps.
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
        job: the training job.
        cluster: the cluster.
        stages: number of pipeline stages.
        summary_group: number of micro-batches that one pass computes retrieval queries for.
        last: whether the stage is the last one, whose backward passes include the head.
    """
    layers = job.shape.num_hidden_layers // stages * job.shape.layer_parameters
    segment = job.forward_flops(layers) / cluster.rate
    summary = summary_group * job.forward_flops(layers, summary=True) / cluster.rate
    head = job.forward_flops(job.shape.head_parameters) / cluster.rate if last else 0.0
    forward = {(Kind.SEGMENT, False): segment, (Kind.SUMMARY, False): summary, (Kind.RECALL, False): 0.0}
    backward = {(Kind.SEGMENT, True): 3 * (segment + head), (Kind.SUMMARY, True): 3 * summary, (Kind.RECALL, True): 0.0}
    return forward | backward
