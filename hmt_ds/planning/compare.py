"""Estimate a training step on a cluster with a pipeline, with ZeRO-1 and with ZeRO-3, to see where its time goes.

Counted are matrix products, messages and GPU memory. Not counted are attention scores, norms, memory retrieval, the
optimizer's arithmetic (equal for every method), kernel launches and ZeRO-3's hooks, which cost more than its messages
within a node: the estimate for ZeRO-3 is a best case.
"""

from collections.abc import Iterator

from hmt_ds.memory import MemorySettings
from hmt_ds.planning.activations import bytes_per_position
from hmt_ds.planning.cluster import Cluster
from hmt_ds.planning.compare_job import BF16, REPLICATED, SHARDED, USABLE, Estimate, Job, estimate
from hmt_ds.planning.compare_pipeline import best_pipeline
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.plan_options import CompareOptions
from hmt_ds.planning.shapes import SHAPES

GATHERED = 0.1  # of the memory: two of ZeRO-3's leaf modules and their gradients, a fortieth each


def comparison(options: CompareOptions) -> list[tuple[int, str, Estimate | None]]:
    """Estimate a training job with ZeRO-1, a pipeline and ZeRO-3 on clusters of several sizes.

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


def zero1(job: Job, cluster: Cluster, gpus: int) -> Estimate:
    """Estimate a training job at ZeRO-1, where each GPU has all weights and float32 gradient sums, reduced once per
    step.

    Args:
        job: the training job.
        cluster: the cluster.
        gpus: number of GPUs.
    """
    parameters = job.shape.parameters
    size = (REPLICATED + SHARDED / gpus) * parameters
    in_node = min(gpus, cluster.gpus_per_node)
    reduction = cluster.all_gather_seconds(REPLICATED * parameters, in_node, gpus // in_node)
    return data_parallel(job, cluster, "whole", size, reduction=reduction)


def zero3(job: Job, cluster: Cluster, gpus: int) -> Estimate:
    """Estimate a training job at ZeRO-3, where every pass all-gathers weights and backward passes also reduce
    gradients.

    Args:
        job: the training job.
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
    """Estimate a training step in which each GPU trains on its own rows, as many at a time as fit.

    Messages overlap with the arithmetic of their pass, so a pass takes the longer of the two. As many of the last
    segments keep their activations as fit; the others are recomputed. Summary passes, which compute retrieval queries,
    run in batches no larger than a segment, and are recomputed.

    Args:
        job: the training job.
        cluster: the cluster.
        layout: ``whole`` or ``sharded`` weights; a name for tables.
        states: bytes of weights, gradient sums and optimizer states on a GPU.
        gather: seconds to all-gather all weights, or to reduce all gradients, in each pass; 0 if passes do not.
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
    """Yield the FLOPs per row and the seconds of messages of each forward and backward pass of a training job.

    The passes are those over one truncated-BPTT window, the segments that gradients flow through.

    Args:
        job: the training job.
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
