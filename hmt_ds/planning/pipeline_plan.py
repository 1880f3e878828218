"""Estimate time and memory of a run on pipeline stages, from its simulated schedule."""

from dataclasses import replace

from hmt_ds.parallel.activation_budget import MARGIN
from hmt_ds.parallel.pipeline.schedule import Kind, graphs_to_keep, pipeline_schedule, summary_group_size
from hmt_ds.planning.activations import GIB
from hmt_ds.planning.cluster import Fleet
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.memory_parts import HOST_BASE, LOGIT_BYTES, OUTSIDE, Memory, activations, states, step_copies
from hmt_ds.planning.simulate import Durations, Link, Machine, Timeline, peak_stashed_bytes, simulate
from hmt_ds.planning.step_time import (
    Pass,
    StepTime,
    backward_seconds,
    bytes_at_end,
    forward_seconds,
    optimizer_seconds,
)

BUFFERS = 1.0 * GIB  # messages that are on their way, and a workspace


def pipeline_estimate(work: Work, layout: Layout, fleet: Fleet) -> tuple[Memory, StepTime]:
    """Estimate memory and time of an optimizer step on pipelines, which are data-parallel to each other with ZeRO-1.

    All stages have equally many layers; the first one also holds the embeddings and the last one the head.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.

    Returns:
        The memory of the fullest GPU (bytes by part), and the duration of the step (seconds by activity).
    """
    stages, rows = layout.stages, layout.rows
    settings, size = work.settings, work.size
    layers = size.layers / stages
    share = summary_positions(settings) / settings.positions
    group = summary_group_size(stages, work.depth, layout.micro_batches, share) if share else 1
    schedule = pipeline_schedule(stages, work.depth, layout.micro_batches, mode=settings.mode, summary_group=group)
    messages = message_bytes(work, layout, group)
    parts = states(work, layout, fleet.count, rank_parameters=layers * size.layer + size.head)
    parts["buffers"] += BUFFERS
    parts["logits"] = LOGIT_BYTES * rows * settings.segment_length * size.vocabulary
    parts["stashed inputs"] = max(peak_stashed_bytes(actions, messages) for actions in schedule)
    graphs = {
        Kind.SEGMENT: activations(work, layout, rows * settings.positions, layers),
        Kind.SUMMARY: activations(work, layout, group * rows * summary_positions(settings), layers),
    }
    limit = MARGIN * fleet.gpu.memory - OUTSIDE
    room = limit - sum(parts.values()) if layout.recompute == "auto" else 0.0
    kept = [graphs_to_keep(actions, graphs, max(0.0, room)) for actions in schedule]
    parts["activations"] = max(graphs[Kind.SEGMENT], max(sum(graphs[a.kind] for a in chosen) for chosen in kept))
    extra = step_copies(
        replace(work, size=replace(size, trained=size.trained // stages)), layout, fleet.count // stages
    )
    step_peak = sum(parts.values()) - parts["activations"] - parts["stashed inputs"] + extra
    host = HOST_BASE * fleet.per_node
    most, kept_passes = fleet.gpu.memory - OUTSIDE, max(map(len, kept))
    memory = Memory(parts, step_peak, host, kept_passes, group, 0, graphs[Kind.SEGMENT], limit, most, fleet.host)
    times = [stage_durations(work, layout, fleet, group, last=p == stages - 1) for p in range(stages)]
    machine = Machine(times, *links(fleet, stages), messages, recomputes_early=True, kept_graphs=kept)
    window = simulate(schedule, machine, settings.mode)
    return memory, pipeline_time(work, layout, fleet, window, messages)


def message_bytes(work: Work, layout: Layout, group: int) -> dict[Kind, float]:
    """Return the bytes of a message between pipeline stages, by kind of pass; gradients have the same size.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        group: number of micro-batches that one pass computes retrieval queries for.
    """
    settings = work.settings
    position = float(work.number_bytes * work.size.hidden_size * layout.rows)
    return {
        Kind.SEGMENT: position * settings.positions,
        Kind.SUMMARY: position * summary_positions(settings) * group,
        Kind.RECALL: position * settings.prompt_tokens(),
    }


def links(fleet: Fleet, stages: int) -> tuple[list[Link], Link]:
    """Return the network links (seconds of latency, bytes per second) of a pipeline on consecutive GPUs.

    Args:
        fleet: type and number of GPUs, nodes and network.
        stages: number of stages.

    Returns:
        The links between each stage and the next one, and the link from the last stage to the first.
    """
    cluster = fleet.cluster
    within = Link(cluster.latency_within, cluster.within_node)
    between = Link(cluster.latency_between, cluster.between_nodes)
    # consecutive stages are on consecutive GPUs, so the last GPU of each node has a slow link to the next stage
    chain = [within if (p + 1) % fleet.per_node else between for p in range(stages - 1)]
    return chain, within if stages <= fleet.per_node else between


def stage_durations(work: Work, layout: Layout, fleet: Fleet, group: int, *, last: bool) -> Durations:
    """Return the seconds of a pipeline stage's forward and backward passes; a backward pass includes its recomputation.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.
        group: number of micro-batches that one pass computes retrieval queries for.
        last: whether the stage is the last one, whose backward passes include the head.
    """
    settings, gpu, layers = work.settings, fleet.gpu, work.size.layers / layout.stages
    tokens = layout.rows * settings.segment_length
    segment = Pass(layout.rows * settings.positions, settings.positions, layers)
    length = summary_positions(settings)
    summary = Pass(group * layout.rows * length, max(1, length), layers)
    head = Pass(0, 0, 0, head=True, tokens=tokens)
    result = {(Kind.RECALL, False): 0.0, (Kind.RECALL, True): 0.0}
    for kind, part in ((Kind.SEGMENT, segment), (Kind.SUMMARY, summary)):
        forward = forward_seconds(work, layout, gpu, part)
        result[kind, False] = forward
        result[kind, True] = forward + backward_seconds(work, layout, gpu, part)
    if last:  # logits are computed once, in the backward pass
        both = forward_seconds(work, layout, gpu, head) + backward_seconds(work, layout, gpu, head)
        result[Kind.SEGMENT, True] += both
    return result


def pipeline_time(work: Work, layout: Layout, fleet: Fleet, window: Timeline, messages: dict[Kind, float]) -> StepTime:
    """Return the seconds of an optimizer step on pipelines: passes, gradient reduction over the pipelines, optimizer.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.
        window: the simulated forward and backward passes over one truncated-BPTT window, in seconds.
        messages: bytes of a message between stages, by kind of pass.
    """
    windows, pipelines = layout.windows(work, fleet.count), fleet.count // layout.stages
    busy = max(sum(timed.stop - timed.start for timed in actions) for actions in window.stages)
    in_node = max(1, fleet.per_node // layout.stages)
    reduced = bytes_at_end(work, layout) / layout.stages
    spent = {
        "forward and backward": windows * busy,
        "pipeline bubble": windows * (window.window_time - busy),
        "messages": fleet.cluster.all_gather_seconds(
            reduced, in_node, max(1, pipelines // in_node), sharing=min(fleet.per_node, layout.stages)
        ),
        "optimizer": optimizer_seconds(work, layout, fleet) / (layout.stages if pipelines == 1 else 1),
    }
    sent = windows * sum(messages[timed.action.kind] for timed in window.stages[0])
    crosses = layout.stages > fleet.per_node
    between = sent if crosses else 0.0
    if pipelines > in_node:
        between += reduced * min(fleet.per_node, layout.stages)
    return StepTime(spent, 0.0 if crosses else sent + reduced * (in_node > 1), between)
