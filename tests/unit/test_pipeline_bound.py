"""Schedules against the lower bound of the README, and against optimal schedules."""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from hmt_ds.memory.settings import MODES
from hmt_ds.parallel.pipeline.schedule import Costs, pipeline_schedule, summary_group_size
from hmt_ds.planning.lower_bound import lower_bound
from hmt_ds.planning.simulate import Machine, Timeline, simulate

SHAPES = list(product(range(1, 9), repeat=3))  # stages, segments, micro-batches
HALF = Costs()  # a segment pass takes 1, a summary pass 0.5, backward three times as long


@cache
def timeline(stages: int, segments: int, batches: int, mode: str, costs: Costs = HALF) -> Timeline:
    """Simulate equal stages."""
    schedule = pipeline_schedule(stages, segments, batches, mode=mode, costs=costs)
    return simulate(schedule, Machine.uniform(costs, stages), mode)


def reference_bound(stages: int, segments: int, batches: int, mode: str) -> float:
    """The README's formula for f = 1, s = 1/2, r = 3 and instant messages."""
    work = segments * batches * {"hmt": 1.5, "rmt": 1, "backbone": 1}[mode] + (stages - 1)
    wait = {
        "hmt": (stages - segments * batches) / 2 + (segments - 1) * max(0, stages - batches),
        "rmt": (segments - 1) * max(0, stages - batches),
        "backbone": 0,
    }[mode]
    return 4 * (work + max(0, wait))


@pytest.mark.parametrize("mode", MODES)
def test_time_against_the_bound(mode):
    """The bound is met without recall always, and with recall for B >= P and for B <= P / 2."""
    gaps = {}
    for shape in SHAPES:
        stages, _, batches = shape
        bound = lower_bound(*shape, mode=mode, costs=HALF)
        assert bound == pytest.approx(reference_bound(*shape, mode))
        gaps[shape] = timeline(*shape, mode).time / bound - 1
        assert gaps[shape] > -1e-9
        if mode != "hmt" or batches >= stages or 2 * batches <= stages:
            assert gaps[shape] < 1e-9, shape
    assert max(gaps.values()) < 0.0834 and sum(gaps.values()) / len(gaps) < 0.0051


@pytest.mark.parametrize("share", [0.55, 0.5, 0.4, 0.25, 0.1])
def test_grouped_summaries_cost_no_time(share):
    """With the executor's group size a window takes no longer than with single summaries, except for what a group takes
    beyond a segment pass, once per stage boundary."""
    costs, found = Costs(summary=share), 0
    for shape in SHAPES:
        summary_group = summary_group_size(*shape, share)
        if summary_group > 1:
            schedule, longer = (
                pipeline_schedule(*shape, summary_group=summary_group),
                replace(costs, summary=summary_group * share),
            )
            time = simulate(schedule, Machine.uniform(longer, shape[0])).time
            over = max(0, summary_group * share - 1) * (shape[0] - 1) * (1 + costs.backward)
            single = timeline(*shape, "hmt", costs).time
            assert single - 1e-9 <= time <= single + over + 1e-9, shape
            found += 1
    assert found > 100


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_against_the_bound(mode):
    """Forward passes alone compared with their half of the bound."""
    for stages, segments, batches in SHAPES:
        schedule = pipeline_schedule(stages, segments, batches, mode=mode, backward=False)
        found = simulate(schedule, Machine.uniform(HALF, stages), mode).time
        half = lower_bound(stages, segments, batches, mode=mode, backward=False, costs=HALF)
        assert half == pytest.approx(reference_bound(stages, segments, batches, mode) / 4)
        assert found == pytest.approx(half) if batches >= stages or 2 * batches <= stages else found > half - 1e-9


# times of optimal schedules, proven by an exact solver (CP-SAT); segment 2, summary 1, backward 3 times as long
OPTIMA = {
    (2, 2, 1): 40,
    (3, 2, 2): 69,
    (3, 3, 2): 93,
    (2, 2, 2): 56,
    (4, 2, 2): 88,
    (4, 2, 3): 98,
    (3, 2, 3): 88,
    (4, 1, 2): 56,
    (3, 3, 1): 84,
}


@pytest.mark.parametrize(("shape", "optimum"), OPTIMA.items(), ids=str)
def test_bound_against_the_optimum(shape, optimum):
    """The optimum lies between the bound and our time, and equals our time wherever that meets the bound."""
    costs = Costs(segment=2, summary=1)
    bound, ours = lower_bound(*shape, costs=costs), timeline(*shape, "hmt", costs).time
    assert bound <= optimum <= ours <= 1.07 * optimum
    assert ours == optimum or bound < ours


SLOW = [  # the same solver, with recalls, links and a wraparound link that take time: mode, backward, costs, optimum
    ((2, 2, 1), "hmt", True, Costs(4, 4, 2, 2, 3, 1), 106),
    ((4, 1, 2), "rmt", True, Costs(3, 4, 3, 2, 1, 2), 78),
    ((3, 1, 3), "rmt", True, Costs(3, 1, 2, 2, 1, 1), 57),
    ((3, 2, 2), "hmt", False, Costs(1, 1, 2, 1, 1, 2), 23),
    ((2, 1, 3), "hmt", False, Costs(2, 3, 3, 0, 3, 2), 24),
    ((2, 1, 2), "backbone", True, Costs(4, 4, 3, 0, 3, 2), 54),
]


@pytest.mark.parametrize(("shape", "mode", "backward", "costs", "optimum"), SLOW, ids=str)
def test_bound_with_slow_links(shape, mode, backward, costs, optimum):
    bound = lower_bound(*shape, mode=mode, backward=backward, costs=costs)
    schedule = pipeline_schedule(*shape, mode=mode, backward=backward, costs=costs)
    assert bound <= optimum <= simulate(schedule, Machine.uniform(costs, shape[0]), mode).time


def test_slow_links_hardly_matter():
    """Messages of a twentieth of a segment pass, a tenth on the wraparound link: hidden by summaries after the fill."""
    costs = Costs(link=0.05, wraparound=0.1, recall=0.02)
    for mode in MODES:
        gaps = [
            timeline(*shape, mode, costs).time / lower_bound(*shape, mode=mode, costs=costs) - 1
            for shape in SHAPES
            if shape[2] >= shape[0]
        ]
        assert min(gaps) > -1e-9 and max(gaps) < 0.018
