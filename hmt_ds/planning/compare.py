"""A ring pipeline beside ZeRO on the same job, by formula: where the time of a step goes on a cluster.

Counted are matrix products, messages, and what must lie in a GPU's memory. Not counted are attention scores, norms, the
recall, the optimizer's own arithmetic (as much for all of them), kernel launches, and ZeRO-3's hooks, which within a
node cost more than its bytes do: the estimate for ZeRO-3 is the best that it could be.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.pipeline.schedule import Kind, graphs_kept, pipeline_schedule, summaries_together
from hmt_ds.planning.activations import bytes_per_position
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.plan_options import CompareOptions
from hmt_ds.planning.shapes import SHAPES, ModelShape
from hmt_ds.planning.simulate import Durations, Link, Machine, Timeline, peak_kept_bytes, simulate

SIZE = 2  # bytes of a bf16 number
USABLE = 0.92  # of a GPU's memory, as parallel/activation_budget.py plans
# bytes of a trained weight: bf16 and its float32 sum on every rank that computes with it (ZeRO-3 shards both); and, in
# a shard, DeepSpeed's float32 weight and two moments, as parallel/compute_choice.py counts
WHOLE, SHARD = SIZE + 4, 12
LEAVES = 0.1  # of the memory: two of ZeRO-3's leaves and their gradients, a fortieth each (parallel/compute_choice.py)


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs.

    Attributes:
        between_nodes: bytes per second into a node, and out of it; its GPUs share them.
        within_node: bytes per second into a GPU, and out of it. NVLink's 900 GB/s are both ways together.
        rate: achieved FLOP/s of a GPU's matrix products.
        memory: bytes of a GPU.
        gpus_per_node: as many on each.
        near, far: seconds until a message's first byte arrives, within a node and between two.
    """

    between_nodes: float = 50e9
    within_node: float = 450e9
    rate: float = 600e12
    memory: float = 80e9
    gpus_per_node: int = 8
    near: float = 10e-6
    far: float = 20e-6

    def spread_seconds(self, size: float, in_node: int, nodes: int, sharing: int = 1) -> float:
        """Gather so many bytes, of which all these ranks have equal shards, on each of them; or reduce-scatter them.

        Each GPU must be sent all but its own shard, and each node all but its own, at least once; NCCL's rings need no
        more. ``sharing``: groups of ranks that do so at the same time on a node.
        """
        into_gpu = size * (1 - 1 / (in_node * nodes)) if in_node > 1 else 0.0
        into_node = size * sharing * (1 - 1 / nodes)
        return max(into_gpu / self.within_node, into_node / self.between_nodes)


@dataclass(frozen=True)
class Job:
    """What is trained: every weight, in bf16 with float32 sums, by Adam.

    Attributes:
        settings: of the memory.
        segments: of a window.
        rows: that a step reads for each GPU.
    """

    shape: ModelShape
    settings: MemorySettings
    segments: int = 8
    rows: int = 2

    def flops(self, parameters: float, *, summary: bool = False) -> float:
        """Of one row's forward pass: 2 for each parameter and position, as in planning/flops.py."""
        return 2 * parameters * (summary_positions(self.settings) if summary else self.settings.positions)

    @property
    def tokens(self) -> int:
        """Fresh tokens of a step for each GPU."""
        return self.rows * self.segments * self.settings.segment_length


@dataclass(frozen=True)
class Estimate:
    """A layout's step.

    Attributes:
        layout: in words.
        seconds: of the step.
        tokens_per_second: fresh ones for each GPU.
        idle: the share of the step in which a GPU does no matrix products.
        bytes: of a GPU's memory; the fullest one.
        fits: whether it has as many.
    """

    layout: str
    seconds: float
    tokens_per_second: float
    idle: float
    bytes: float
    fits: bool


def comparison(options: CompareOptions) -> list[tuple[int, str, Estimate | None]]:
    """GPUs, way, and its estimate: each way for each number of GPUs. None where a ring is not possible."""
    shape = SHAPES[options.shape]
    settings = MemorySettings(options.segment_length, recall_dim=shape.hidden_size)
    job = Job(shape, settings, options.segments, options.rows)
    cluster = Cluster(options.between_nodes, rate=options.rate)
    ways = {"ZeRO-1": zero1, "ring": best_ring, "ZeRO-3": zero3}
    return [(gpus, name, way(job, cluster, gpus)) for gpus in options.gpus for name, way in ways.items()]


def estimate(job: Job, cluster: Cluster, layout: str, seconds: float, arithmetic: float, size: float) -> Estimate:
    """From the seconds of a step, and of its matrix products on a GPU."""
    fits = size <= USABLE * cluster.memory
    return Estimate(layout, seconds, job.tokens / seconds, 1 - arithmetic / seconds, size, fits)


def best_ring(job: Job, cluster: Cluster, gpus: int) -> Estimate | None:
    """The fastest ring of two stages or more that fits; if none does, the smallest one. None if there is no ring."""
    found = [ring(job, cluster, gpus, stages) for stages in stage_counts(job.shape, cluster, gpus)]
    return min(found, key=lambda e: (not e.fits, e.seconds if e.fits else e.bytes), default=None)


def stage_counts(shape: ModelShape, cluster: Cluster, gpus: int) -> Iterator[int]:
    """Stages with as many layers each, in rings that fill nodes, or parts of a node."""
    for stages in range(2, min(shape.num_hidden_layers, gpus) + 1):
        straddles = cluster.gpus_per_node % stages and stages % cluster.gpus_per_node
        if not straddles and gpus % stages == 0 and shape.num_hidden_layers % stages == 0:
            yield stages


def ring(job: Job, cluster: Cluster, gpus: int, stages: int) -> Estimate:
    """Rings of so many stages, data parallel to each other with ZeRO-1.

    A micro-batch is one row. As many items as fit keep their graphs (parallel/pipeline/stage_budget.py); the others are
    read again before their backward pass. In the end the rings reduce-scatter their float32 sums, and gather bf16
    weights.
    """
    node, rings = cluster.gpus_per_node, gpus // stages
    layers, head = job.shape.num_hidden_layers // stages, job.shape.head_parameters
    weights = layers * job.shape.layer_parameters + head  # the first stage has the embedding, the last one the head
    states = (WHOLE + SHARD / rings) * weights
    graph = job.settings.positions * bytes_per_position(replace(job.shape, num_hidden_layers=layers), "none", SIZE)
    window, kept = ring_window(job, cluster, stages, graph, USABLE * cluster.memory - states)
    in_node = max(1, min(node, gpus) // stages)
    seconds = window.window_time + cluster.spread_seconds(
        WHOLE * weights, in_node, rings // in_node, sharing=min(node, stages)
    )
    busy = sum(bar.stop - bar.start for bars in window.stages for bar in bars) / stages
    size = states + max(window.kept_bytes) + max(kept, graph)
    return estimate(job, cluster, f"{stages} stages x {rings}", seconds, busy, size)


@lru_cache(maxsize=64)
def ring_window(job: Job, cluster: Cluster, stages: int, graph: float, room: float) -> tuple[Timeline, float]:
    """The simulated window of one ring, whose ranks stand in a row, and the bytes of the graphs that a stage keeps.

    Args:
        graph: bytes of a segment's.
        room: bytes for inputs and graphs.
    """
    node, settings = cluster.gpus_per_node, job.settings
    near, far = Link(cluster.near, cluster.within_node), Link(cluster.far, cluster.between_nodes)
    links = [near if (p + 1) % node else far for p in range(stages - 1)]
    number = SIZE * job.shape.hidden_size
    parts = job.rows * stages
    together = summaries_together(stages, job.segments, parts, settings.summary_share)
    message_bytes = {
        Kind.MAIN: number * settings.positions,
        Kind.SUMMARY: number * summary_positions(settings) * together,
        Kind.RECALL: number * settings.memory_tokens,
    }
    times = [stage_durations(job, cluster, stages, together, last=p == stages - 1) for p in range(stages)]
    schedule = pipeline_schedule(stages, job.segments, parts, mode=settings.mode, together=together)
    spare = room - max(peak_kept_bytes(items, message_bytes) for items in schedule)
    sizes = {Kind.MAIN: graph, Kind.SUMMARY: graph * settings.summary_share * together}
    keeps = [graphs_kept(items, sizes, spare) for items in schedule]
    machine = Machine(times, links, near if stages <= node else far, message_bytes, keeps=keeps)
    return simulate(schedule, machine, settings.mode), sum(sizes[item.kind] for item in keeps[0])


def stage_durations(job: Job, cluster: Cluster, stages: int, together: int, *, last: bool) -> Durations:
    """Seconds of a stage's items. The last stage has the head, which the first reading leaves out.

    Args:
        together: of how many micro-batches a summary is.
    """
    layers = job.shape.num_hidden_layers // stages * job.shape.layer_parameters
    main, summary = job.flops(layers) / cluster.rate, together * job.flops(layers, summary=True) / cluster.rate
    head = job.flops(job.shape.head_parameters) / cluster.rate if last else 0.0
    backward = {(Kind.MAIN, True): 3 * (main + head), (Kind.SUMMARY, True): 3 * summary, (Kind.RECALL, True): 0.0}
    return {(Kind.MAIN, False): main, (Kind.SUMMARY, False): summary, (Kind.RECALL, False): 0.0} | backward


def zero1(job: Job, cluster: Cluster, gpus: int) -> Estimate:
    """ZeRO-1 with ``compute.reduction step``: each GPU has the whole model and the float32 sum of its gradient."""
    parameters = job.shape.parameters
    size = (WHOLE + SHARD / gpus) * parameters
    in_node = min(gpus, cluster.gpus_per_node)
    at_the_end = cluster.spread_seconds(WHOLE * parameters, in_node, gpus // in_node)
    return data_parallel(job, cluster, "whole", size, at_the_end=at_the_end)


def zero3(job: Job, cluster: Cluster, gpus: int) -> Estimate:
    """ZeRO-3 with ``compute.reduction segment``: every pass gathers all weights, a backward pass reduces gradients."""
    parameters = job.shape.parameters
    size = (WHOLE + SHARD) * parameters / gpus + LEAVES * cluster.memory
    in_node = min(gpus, cluster.gpus_per_node)
    gather = cluster.spread_seconds(SIZE * parameters, in_node, gpus // in_node)
    return data_parallel(job, cluster, "sharded", size, gather=gather)


def data_parallel(
    job: Job, cluster: Cluster, layout: str, states: float, *, gather: float = 0.0, at_the_end: float = 0.0
) -> Estimate:
    """A step in which each GPU reads its own rows, as many at a time as fit.

    Messages go beside the arithmetic of their pass, so a pass takes the longer of the two. As many of the last segments
    keep their activations as fit, and are read once (parallel/activation_budget.py); the rest is read, and read
    again. Summaries are read in batches that are no larger than a segment, twice.

    Args:
        states: bytes of weights, sums and the optimizer's states.
        gather: seconds to gather all weights, or to reduce all gradients.
    """
    room = USABLE * cluster.memory - states
    row = job.settings.positions * bytes_per_position(job.shape, "none", SIZE)
    at_once = max((n for n in range(1, job.rows + 1) if job.rows % n == 0 and n * row <= room), default=1)
    kept = max(1, min(job.segments, int(room // (at_once * row))))
    passes = [(work * at_once / cluster.rate, sent) for work, sent in window_passes(job, kept, gather)]
    times = job.rows // at_once
    seconds = times * sum(max(work, sent) for work, sent in passes) + at_the_end
    arithmetic = times * sum(work for work, _ in passes)
    rows = "" if at_once == job.rows else f", {at_once} of {job.rows} rows at a time"
    return estimate(job, cluster, f"{layout}{rows}", seconds, arithmetic, states + kept * at_once * row)


def window_passes(job: Job, kept: int, gather: float) -> Iterator[tuple[float, float]]:
    """All passes over a window: FLOPs by row, and seconds of messages. A backward pass gathers, and reduces as much."""
    layers = job.shape.num_hidden_layers * job.shape.layer_parameters
    main, whole = job.flops(layers), job.flops(layers + job.shape.head_parameters)
    for n in range(job.segments):
        if n < job.segments - kept:
            yield main, gather  # without the head, which no border needs
        yield whole, gather
        yield 2 * whole, 2 * gather
    if job.settings.mode == "hmt":
        share = summary_positions(job.settings) / job.settings.positions
        batch = max(n for n in range(1, job.segments + 1) if job.segments % n == 0 and (n == 1 or n * share <= 1))
        summaries = batch * job.flops(layers, summary=True)
        for _ in range(job.segments // batch):
            yield from [(summaries, gather), (summaries, gather), (2 * summaries, 2 * gather)]
