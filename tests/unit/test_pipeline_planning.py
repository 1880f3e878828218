"""The pipeline simulator and the estimates for clusters, against results by hand and against bench's FLOPs."""

from dataclasses import replace

import pytest

from hmt_ds.memory import MemorySettings, RecomputePlan
from hmt_ds.parallel.pipeline.schedule import Action, Costs, Kind, pipeline_schedule
from hmt_ds.planning.activations import bytes_per_position
from hmt_ds.planning.cluster import Cluster
from hmt_ds.planning.compare import comparison, window_passes, zero1, zero3
from hmt_ds.planning.compare_job import Job
from hmt_ds.planning.compare_pipeline import best_pipeline, pipeline, pipeline_window, stage_counts
from hmt_ds.planning.flops import positions_per_token, repeated_positions, useful_flops_per_token
from hmt_ds.planning.lower_bound import lower_bound
from hmt_ds.planning.plan_options import CompareOptions
from hmt_ds.planning.shapes import SHAPES, ModelShape
from hmt_ds.planning.simulate import Link, Machine, durations, simulate

SETTINGS = MemorySettings(segment_length=1024, recall_dim=64)
JOB = Job(SHAPES["7b"], SETTINGS)
HEADLESS = Job(replace(SHAPES["7b"], vocab_size=0), SETTINGS)
SMALL = Cluster(memory=1e9)  # too small to keep a graph
GRAPH = 1058 * bytes_per_position(
    replace(JOB.shape, num_hidden_layers=4), "none", 2
)  # of a segment pass, with 8 stages
INPUTS = 8 * 16 * (1058 + 514) * 4096 * 2  # stashed inputs of 8 segments and summaries of 16 rows
FAR = Cluster(between_nodes=1e18, within_node=1e18, latency_within=0, latency_between=0)  # instant messages


def spans(actions) -> list[tuple[str, float, float]]:
    return [(repr(timed.action), timed.start, timed.stop) for timed in actions]


def test_messages_wait_for_each_other():
    """10 bytes at 2 bytes per second with a latency of a second, in both directions."""
    costs = Costs(segment=1, backward=2)
    machine = Machine([durations(costs)] * 2, [Link(1, 2)], message_bytes={Kind.SEGMENT: 10})
    found = simulate(pipeline_schedule(2, 1, 2, mode="backbone"), machine, "backbone", after_window=4)
    assert spans(found.stages[1]) == [("F0.0", 7, 8), ("B0.0", 8, 10), ("F0.1", 12, 13), ("B0.1", 13, 15)]
    assert spans(found.stages[0]) == [("F0.0", 0, 1), ("F0.1", 1, 2), ("B0.0", 16, 18), ("B0.1", 21, 23)]
    assert found.window_time == 23 and found.time == 27
    assert found.bubbles == [1 - 6 / 23] * 2
    assert found.stashed_inputs == [2, 1] and found.stashed_bytes == [20, 10]


def test_the_wraparound_link_is_separate():
    """Also with two stages, where both links connect the same stages, and in both directions."""
    costs = Costs(segment=1, backward=1, recall=0.5, link=2, wraparound=3)
    found = simulate(pipeline_schedule(2, 1, 1, mode="rmt"), Machine.uniform(costs, 2), "rmt")
    assert spans(found.stages[0]) == [("F0.0", 3.5, 4.5), ("B0.0", 10.5, 11.5)]
    assert spans(found.stages[1]) == [("r0.0", 0, 0.5), ("F0.0", 6.5, 7.5), ("B0.0", 7.5, 8.5), ("q0.0", 14.5, 15)]
    assert found.time == lower_bound(2, 1, 1, mode="rmt", costs=costs) == 15


def test_recomputation_does_not_wait():
    """When the gradient arrives, the first stage has recomputed its segment and has 2 of 3 left to do."""
    schedule = pipeline_schedule(2, 1, 1, mode="backbone")
    found = simulate(schedule, Machine.uniform(Costs(), 2, recomputes_early=True), "backbone")
    assert spans(found.stages[1]) == [("F0.0", 1, 2), ("B0.0", 2, 5)]
    assert spans(found.stages[0]) == [("F0.0", 0, 1), ("B0.0", 4, 7)]
    assert simulate(schedule, Machine.uniform(Costs(), 2), "backbone").time == 8


def test_kept_graphs_are_not_recomputed():
    """By hand, on one stage: F0 F1 of 1 and 2 B of 3, of which the kept one takes 2; beside another stage that keeps
    nothing it waits."""
    order = pipeline_schedule(1, 1, 2, mode="rmt")
    kept = [{Action(Kind.SEGMENT, 0, 1)}]
    assert simulate(order, Machine.uniform(Costs(), 1), "rmt").time == 2 + 2 * 3
    assert simulate(order, Machine.uniform(Costs(), 1, kept_graphs=kept), "rmt").time == 2 + 2 + 3
    # F0 F1 on stage 0; stage 1 has both at 3, and the gradient is back at 6; a kept one does not start earlier
    order = pipeline_schedule(2, 1, 2, mode="backbone")
    machine = Machine.uniform(Costs(), 2, recomputes_early=True, kept_graphs=[{Action(Kind.SEGMENT, 0, 0)}, ()])
    found = simulate(order, machine, "backbone")
    assert [(repr(timed.action), timed.start, timed.stop) for timed in found.stages[0]] == [
        ("F0.0", 0, 1), ("F0.1", 1, 2), ("B0.0", 5, 7), ("B0.1", 8, 11)
    ]  # fmt: skip


def test_stages_may_differ():
    """The second stage takes twice as long."""
    machine = Machine([durations(Costs(segment=1)), durations(Costs(segment=2))], [Link()])
    found = simulate(pipeline_schedule(2, 1, 3, mode="backbone", backward=False), machine, "backbone")
    assert spans(found.stages[1]) == [("F0.0", 1, 3), ("F0.1", 3, 5), ("F0.2", 5, 7)]
    assert found.bubbles == pytest.approx([4 / 7, 1 / 7]) and found.stashed_bytes == [0, 0]


def test_kept_bytes():
    """Summaries and segments count with their own sizes; a recall stashes nothing."""
    sizes = {Kind.SEGMENT: 100, Kind.SUMMARY: 10, Kind.RECALL: 1}
    machine = replace(Machine.uniform(Costs(), 2), message_bytes=sizes)
    assert simulate(pipeline_schedule(2, 3, 4), machine).stashed_bytes == [12 * 110] * 2


@pytest.mark.parametrize(("name", "parameters"), [("7b", 6738415616), ("13b", 13015864320), ("70b", 68976648192)])
def test_shapes(name, parameters):
    """Parameter counts as published with the weights."""
    assert SHAPES[name].parameters == parameters


@pytest.mark.parametrize(
    ("in_node", "nodes", "sharing", "seconds"),
    [
        (8, 1, 1, 7 / 8 * 9 / 450),  # within a node
        (8, 8, 1, 7 / 8 * 9 / 50),  # the node's network is slower than the links within it
        (1, 2, 8, 8 / 2 * 9 / 50),  # eight pairs across two nodes
        (1, 1, 8, 0),
    ],
)
def test_gathering(in_node, nodes, sharing, seconds):
    assert Cluster().all_gather_seconds(9e9, in_node, nodes, sharing) == pytest.approx(seconds)


def test_all_gather_of_7b_over_a_network_takes_270_ms():
    """Why ZeRO-3 is slow on an unrolled recurrence: the arithmetic for two rows of 256 tokens takes 13 ms."""
    small = replace(JOB, settings=replace(SETTINGS, segment_length=256))
    found = zero3(small, Cluster(), 8 * 1024)
    # 8 segments forward and backward, 4 summary batches twice forward and once backward: 1 gather, and 2 for backward
    assert found.seconds == pytest.approx((8 * 3 + 4 * 4) * 2 * JOB.shape.parameters / 50e9, rel=0.001)
    arithmetic = (
        2 * 8 * (290 * 6 * 6.6e9 + 130 * 8 * 6.5e9) / 600e12
    )  # all segments keep their activations, no summary does
    assert found.idle == pytest.approx(1 - arithmetic / found.seconds, abs=0.001)


def test_zero3_without_messages_is_arithmetic():
    found = zero3(JOB, FAR, 64)
    assert found.idle == pytest.approx(0) and found.fits and found.layout == "sharded"
    by_hand = sum(flops for flops, _ in window_passes(JOB, 8, 0)) * 2 / 600e12  # 8 segments of 7.8 GB fit
    assert found.seconds == pytest.approx(by_hand)


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_flops_are_those_of_bench(kept):
    """Useful and recomputed FLOPs; bench counts the head for summaries too, so this model has none."""
    parameters = 32 * HEADLESS.shape.layer_parameters
    useful = useful_flops_per_token(parameters, parameters, SETTINGS) * HEADLESS.tokens
    again = 2 * parameters * 2 * repeated_positions(SETTINGS, RecomputePlan(kept, 1, 0), 8, layers_again=False)
    counted = sum(flops for flops, _ in window_passes(HEADLESS, kept, 0))
    assert counted * HEADLESS.rows == pytest.approx(useful + again)


def test_a_pipeline_with_little_memory_recomputes_everything():
    """The stages' work in all: 4 forward passes for all positions, and 3 of the head, which the first pass skips."""
    window, kept = pipeline_window(JOB, FAR, 8, GRAPH, free_bytes=0)
    assert kept == 0
    busy = sum(timed.stop - timed.start for actions in window.stages for timed in actions) * FAR.rate
    layers, head = 32 * JOB.shape.layer_parameters, JOB.shape.head_parameters
    tokens = 8 * JOB.tokens  # of 8 GPUs
    forward = 2 * layers * positions_per_token(SETTINGS) * tokens
    assert busy == pytest.approx(4 * forward + 3 * 2 * head * SETTINGS.positions / SETTINGS.segment_length * tokens)


def test_equal_stages_meet_the_bound():
    """Without head and messages the window takes the time of the README's bound."""
    forward = 2 * 4 * HEADLESS.shape.layer_parameters / FAR.rate
    costs = Costs(forward * SETTINGS.positions, forward * (SETTINGS.summary_length + 2))
    assert pipeline_window(HEADLESS, FAR, 8, GRAPH, free_bytes=0)[0].time == pytest.approx(
        lower_bound(8, 8, 16, costs=costs)
    )


def test_where_a_pipeline_spends_its_step():
    """The reduction: float32 sums reduce-scattered and bf16 weights all-gathered, for all stages of a node."""
    weights = 4 * JOB.shape.layer_parameters + JOB.shape.head_parameters
    end = 6 * weights * 8 * (1 - 1 / 2) / 50e9
    assert pipeline(JOB, SMALL, 16, 8).seconds == pytest.approx(pipeline_window(JOB, SMALL, 8, GRAPH, 0)[0].time + end)
    # all stages and pipelines in one node: over NVLink
    end = 6 * (8 * JOB.shape.layer_parameters + JOB.shape.head_parameters) * (1 - 1 / 2) / 450e9
    assert pipeline(JOB, SMALL, 8, 4).seconds == pytest.approx(pipeline_window(JOB, SMALL, 4, GRAPH, 0)[0].time + end)
    # a pipeline over two nodes has two slow links, one of them the wraparound, and everything waits for them: a summary
    # on the link, then for 8 segments the wraparound and the link, forward and backward
    assert pipeline_window(JOB, Cluster(latency_between=1000), 16, GRAPH, 0)[0].time == pytest.approx(
        2 * (1 + 8 * 2) * 1000, rel=0.001
    )


def test_memory_of_a_pipeline():
    """Weights and gradient sums, sharded optimizer states, stashed inputs, and the graph of one row."""
    weights = 4 * JOB.shape.layer_parameters + JOB.shape.head_parameters
    found = pipeline(JOB, SMALL, 64, 8)
    assert found.bytes == (6 + 12 / 8) * weights + INPUTS + GRAPH and not found.fits


@pytest.mark.parametrize(("more", "kept"), [(0, 0), (0.5, 0), (1, 1), (32.9, 32), (33, 32 + 2 * 514 / 1058)])
def test_kept_graphs_of_a_pipeline(more, kept):
    """The last two segments have 32 passes of one row; the passes before them are summaries of two rows each, with 514
    positions where a segment has 1,058. Kept passes run forward once on all stages."""
    window, size = pipeline_window(JOB, FAR, 8, GRAPH, INPUTS + (more + 1e-6) * GRAPH)
    assert size == pytest.approx(kept * GRAPH)
    read_twice, _ = pipeline_window(JOB, FAR, 8, GRAPH, 0)
    once, twice = (
        sum(timed.stop - timed.start for actions in w.stages for timed in actions) for w in (window, read_twice)
    )
    head = JOB.forward_flops(JOB.shape.head_parameters)  # which the first pass skips
    assert head > 0
    assert twice - once == pytest.approx(kept * JOB.forward_flops(32 * JOB.shape.layer_parameters) / FAR.rate)


def test_what_fits():
    """6 bytes per weight, and the activations: 7B fits on a GPU of 80 GB, 13B does not."""
    larger = replace(JOB, shape=SHAPES["13b"])
    assert zero1(JOB, Cluster(), 64).fits and not zero1(larger, Cluster(), 1024).fits
    assert best_pipeline(larger, Cluster(), 64).fits and zero3(larger, Cluster(), 64).fits
    assert not zero3(larger, Cluster(), 2).fits
    largest = best_pipeline(replace(JOB, shape=SHAPES["70b"]), Cluster(), 8)
    assert not largest.fits and largest.layout == "8 stages x 1"  # the one that needs least memory


def test_rows_that_do_not_fit_run_in_turn():
    found = zero1(replace(JOB, rows=4), Cluster(memory=60e9), 64)
    assert found.layout == "whole, 2 of 4 rows at a time"
    end = 6 * JOB.shape.parameters * (1 - 1 / 8) / 50e9  # float32 sums reduce-scattered, bf16 weights all-gathered
    assert found.seconds == pytest.approx(4 * sum(flops for flops, _ in window_passes(JOB, 1, 0)) / 600e12 + end)


def test_stages():
    """Stages have equally many layers, and no pipeline straddles a part of a node."""
    assert list(stage_counts(SHAPES["7b"], Cluster(), 64)) == [2, 4, 8, 16, 32]
    assert list(stage_counts(SHAPES["13b"], Cluster(), 40)) == [2, 4, 8, 40]
    assert list(stage_counts(SHAPES["13b"], Cluster(), 1)) == [] and best_pipeline(JOB, Cluster(), 1) is None


def test_comparison():
    """Each method for each number of GPUs, with the options passed on."""
    options = CompareOptions("13b", "8,64", 25, 300, rows=3, segment_length=256, segments=4)
    rows = comparison(options)
    assert [(gpus, way) for gpus, way, _ in rows] == [(n, w) for n in (8, 64) for w in ("ZeRO-1", "pipeline", "ZeRO-3")]
    job = Job(SHAPES["13b"], MemorySettings(256, recall_dim=5120), segments=4, rows=3)
    assert rows[5][2] == zero3(job, Cluster(25e9, rate=300e12), 64)
    assert rows[4][2] == best_pipeline(job, Cluster(25e9, rate=300e12), 64)


def test_a_shape_without_grouped_heads():
    """By hand: 4 x 2 x 2 of attention, 3 x 2 x 5 of the MLP, two norms; embedding and head 7 x 2; the last norm."""
    assert ModelShape(2, 5, 3, vocab_size=7).parameters == 3 * (16 + 30 + 4) + 2 * 14 + 2


def test_without_summaries_a_pipeline_sends_and_computes_none():
    """Mode rmt of the adapted interface: a sink in front of the memory, and write embeddings behind the tokens."""
    settings = replace(SETTINGS, interface="adapted", mode="rmt", memory_tokens=2)
    window, kept = pipeline_window(replace(JOB, settings=settings), FAR, 8, GRAPH, 0.0)
    actions = [timed.action.kind for timed in window.stages[0]]
    assert Kind.SUMMARY not in actions and actions.count(Kind.SEGMENT) == 2 * 8 * 16 and kept == 0
    assert window.stashed_bytes[0] == 8 * 16 * (1024 + 32 + 1 + 2 + 2) * 4096 * 2
