"""Schedules are complete, free of deadlock on first-in-first-out links, and stash few inputs."""

from collections import Counter
from itertools import product

import pytest
from pipeline_interpreter import RECALL, SEGMENT, SUMMARY, execute

from hmt_ds.memory.settings import MODES
from hmt_ds.parallel.pipeline.dependencies import dependencies, destination
from hmt_ds.parallel.pipeline.schedule import (
    Action,
    Costs,
    peak_live_inputs,
    pipeline_schedule,
    summary_group_size,
)
from hmt_ds.planning.simulate import Machine, simulate

SHAPES = list(product(range(1, 9), repeat=3))  # stages, segments, micro-batches
# with the micro-batches per summary pass
GROUPED = [(*shape, n) for shape in SHAPES for n in range(1, shape[2] + 1) if shape[2] % n == 0]


def expected(
    stage: int, stages: int, segments: int, batches: int, summary_group: int, mode: str, backward: bool
) -> Counter:
    """Return each action of a stage, once."""
    kinds = {"hmt": [SUMMARY, RECALL, SEGMENT], "rmt": [RECALL, SEGMENT], "backbone": [SEGMENT]}[mode]
    kinds = [kind for kind in kinds if kind != RECALL or stage == stages - 1]
    ways = [False, True] if backward else [False]
    parts = {SUMMARY: batches // summary_group, RECALL: batches, SEGMENT: batches}
    return Counter(
        Action(*names) for kind in kinds for names in product([kind], range(segments), range(parts[kind]), ways)
    )


@pytest.mark.parametrize("backward", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("mode", MODES)
def test_complete_and_free_of_deadlock(mode, backward):
    """All 512 shapes: every action runs once on its stage; all lists end, and only the last memory is left."""
    for shape in GROUPED if mode == "hmt" else [(*shape, 1) for shape in SHAPES]:
        _, segments, batches, summary_group = shape
        schedule = pipeline_schedule(*shape[:3], mode=mode, backward=backward, summary_group=summary_group)
        for p, actions in enumerate(schedule):
            assert Counter(actions) == expected(p, *shape, mode, backward), (shape, p)
        ran, channels = execute(schedule, segments, mode, summary_group)
        assert not any(stage.actions for stage in ran), (shape, [list(stage.actions)[:1] for stage in ran])
        assert not any(channels.values())
        last = segments - 1 if mode != "backbone" else 0
        memories = {("memory", n, b) for n in range(last, segments) for b in range(batches)}
        left = set().union(*(stage.here for stage in ran))
        assert {m for m in left if m[0] != "input"} == memories
        assert backward != any(m[0] == "input" for m in left)


@pytest.mark.parametrize("link", [0.0, 0.3])
@pytest.mark.parametrize("mode", MODES)
def test_kept_inputs(mode, link):
    """The documented peak, compared with a count of the stashed inputs."""
    for stages, segments, batches, summary_group in GROUPED if mode == "hmt" else [(*shape, 1) for shape in SHAPES]:
        how = {"mode": mode, "summary_group": summary_group, "costs": Costs(link=link)}
        schedule = pipeline_schedule(stages, segments, batches, **how)
        for p, actions in enumerate(schedule):
            kept, most = set(), 0
            for action in actions:
                name = (action.kind, action.segment, action.micro_batch)
                if action.kind != RECALL:
                    kept ^= {name}
                    assert (name in kept) != action.backward
                    most = max(most, len(kept))
            windows = segments * batches
            ahead = stages - p if not link else 2 * (stages - p) - 1
            promised = {"hmt": windows + windows // summary_group, "rmt": windows, "backbone": min(windows, ahead)}[
                mode
            ]
            assert peak_live_inputs(actions) == most == promised, (stages, segments, batches, p)
            assert peak_live_inputs([action for action in actions if not action.backward]) == 0


def words(actions: list[Action]) -> str:
    return " ".join(map(repr, actions))


def test_by_hand():
    """Two stages, two segments, two micro-batches."""
    first, last = pipeline_schedule(2, 2, 2)
    assert words(first) == (
        "s0.0 s0.1 s1.0 s1.1 F0.0 F0.1 F1.0 F1.1 B1.1 B1.0 B0.1 B0.0 t1.1 t1.0 t0.1 t0.0"  # the reverse
    )
    assert words(last) == (
        "s0.0 r0.0 s0.1 r0.1 s1.0 s1.1 F0.0 r1.0 F0.1 r1.1 F1.0 F1.1 "
        "B1.1 B1.0 q1.1 B0.1 q1.0 B0.0 t1.1 t1.0 q0.1 t0.1 q0.0 t0.0"
    )
    # both stages run summaries until the first prompt arrives; then stage 1 waits for stage 0's first segment pass
    stages = simulate(pipeline_schedule(2, 2, 2), Machine.uniform(Costs(), 2)).stages
    bars = {repr(bar.action): (bar.start, bar.stop) for bar in stages[1]}
    assert bars["s0.0"] == (0.5, 1) and bars["F0.0"] == (3, 4) and bars["F1.1"] == (6, 7) and bars["B1.1"] == (7, 10)


def test_summaries_are_two_segments_ahead():
    assert words(pipeline_schedule(1, 4, 1, backward=False)[0][:8]) == "s0.0 r0.0 s1.0 F0.0 r1.0 s2.0 F1.0 r2.0"
    assert words(pipeline_schedule(2, 4, 1, backward=False)[0]) == "s0.0 s1.0 F0.0 s2.0 F1.0 s3.0 F2.0 F3.0"


def test_summaries_of_two_micro_batches():
    """Two stages, two segments: the recalls that follow, and the order of backward passes."""
    first, last = pipeline_schedule(2, 2, 2, summary_group=2)
    assert words(first) == "s0.0 s1.0 F0.0 F0.1 F1.0 F1.1 B1.1 B1.0 B0.1 B0.0 t1.0 t0.0"
    assert words(last) == (
        "s0.0 r0.0 r0.1 s1.0 F0.0 r1.0 F0.1 r1.1 F1.0 F1.1 B1.1 B1.0 q1.1 B0.1 q1.0 B0.0 t1.0 q0.1 q0.0 t0.0"
    )


def test_summary_group_size():
    """About as long as a segment, in whole groups, and no stage waits for the first group."""
    assert [summary_group_size(2, 8, parts, 0.5) for parts in (1, 2, 3, 4, 6)] == [1, 2, 1, 2, 2]
    assert [summary_group_size(2, 8, 8, share) for share in (0.6, 0.501, 0.5, 0.3, 0.25, 0.1)] == [1, 2, 2, 2, 4, 8]
    assert [summary_group_size(stages, 8, 4, 0.25) for stages in (1, 2, 3, 4, 5)] == [4, 4, 2, 2, 1]
    assert summary_group_size(2, 1, 2, 0.5) == 1 and summary_group_size(2, 1, 4, 0.5) == 2


def test_without_memory_it_is_1f1b():
    assert words(pipeline_schedule(2, 1, 4, mode="backbone")[0]) == "F0.0 F0.1 B0.0 F0.2 B0.1 F0.3 B0.2 B0.3"


@pytest.mark.parametrize("mode", MODES)
def test_results_go_where_they_are_needed(mode):
    """`destination` and `dependencies` agree on every message."""
    for stages, segments, batches, summary_group in product((1, 2, 4), (1, 3), (2, 4), (1, 2)):
        schedule = pipeline_schedule(stages, segments, batches, mode=mode, summary_group=summary_group)
        asked = Counter(
            (action, at, p)
            for p, actions in enumerate(schedule)
            for wanted in actions
            for at, action in dependencies(wanted, p, stages, segments, mode, summary_group)
            if at != p
        )
        given = Counter(
            (action, p, to)
            for p, actions in enumerate(schedule)
            for action in actions
            if (to := destination(action, p, stages, mode)) is not None
        )
        assert asked == given


def test_dependencies_by_hand():
    """Dependencies that the order of a stage implies are listed too."""
    recall, main = Action(RECALL, 2, 1), Action(SEGMENT, 1, 1)
    assert set(dependencies(recall, 3, 4, 5, "hmt")) == {(3, Action(SUMMARY, 2, 1)), (3, main)}
    assert (
        dependencies(recall, 3, 4, 5, "rmt") == [(3, main)] and dependencies(Action(RECALL, 0, 1), 3, 4, 5, "rmt") == []
    )
    gradient = Action(SEGMENT, 1, 1, backward=True)
    assert set(dependencies(gradient, 3, 4, 5, "hmt")) == {(3, main), (3, Action(RECALL, 2, 1, backward=True))}
    assert set(dependencies(gradient, 2, 4, 5, "hmt")) == {(2, main), (3, gradient)}
    assert dependencies(gradient, 3, 4, 2, "hmt") == dependencies(gradient, 3, 4, 5, "backbone") == [(3, main)]


def test_actions():
    assert {Action(SEGMENT, 1, 2), Action(SEGMENT, 1, 2), Action(SEGMENT, 1, 2, True)} == {
        Action(SEGMENT, 1, 2),
        Action(SEGMENT, 1, 2, True),
    }
    assert sorted([Action(SEGMENT, 1, 0), Action(SEGMENT, 0, 1), Action(SEGMENT, 0, 0, True), Action(SEGMENT, 0, 0)])[
        1
    ].backward


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((0, 1, 1), {}, "stages: must be at least 1, got 0"),
        ((1, -2, 1), {}, "segments: must be at least 1, got -2"),
        ((1, 1, 0), {}, "micro-batches: must be at least 1, got 0"),
        ((1, 1, 3), {"summary_group": 2}, "summary_group: must divide the 3 micro-batches, got 2"),
        ((1, 1, 1), {"mode": "htm"}, "mode: must be one of hmt, rmt, backbone, got 'htm'"),
    ],
)
def test_mistakes(shape, options, said):
    with pytest.raises(ValueError, match=said):
        pipeline_schedule(*shape, **options)


def test_large_schedules():
    """Every stage has all passes; the last one also has the recalls."""
    assert list(map(len, pipeline_schedule(16, 64, 64))) == [4 * 64**2] * 15 + [6 * 64**2]


def test_the_simulator_sees_deadlocks():
    schedule = pipeline_schedule(2, 2, 2)
    schedule[0].insert(0, schedule[0].pop(4))  # the first segment pass before all summaries
    with pytest.raises(ValueError, match="wait for each other"):
        simulate(schedule, Machine.uniform(Costs(), 2))
