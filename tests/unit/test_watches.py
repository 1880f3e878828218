"""Warnings while training: loss spikes, falling speed, an ignored memory, a collapsed recall."""

import math
import random
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmt_ds.memory import IGNORED, MemoryState, Window
from hmt_ds.training import memory_watch
from hmt_ds.training.curve_watch import REMEMBERED, SPEED_STEPS, WARM_UP, CurveWatch
from hmt_ds.training.memory_watch import MemoryWatch, Probe, largest, pooled_cost


def lines_of(watch: CurveWatch, steps: list[tuple[float | None, float]], depth: int = 2) -> list[tuple[int, str]]:
    """Return what is said of some steps, with their numbers from 1."""
    return [(n, line) for n, (loss, speed) in enumerate(steps, 1) for line in watch.step(loss, speed, depth)]


def test_a_spike_is_named_once():
    noise = random.Random(0)
    steps = [(4 - n / 100 + noise.gauss(0, 0.05), 100.0) for n in range(1, 81)]
    assert lines_of(CurveWatch(), steps) == []
    steps[59], steps[60] = (9.0, 100.0), (8.5, 100.0)
    ((step, line),) = lines_of(CurveWatch(), steps)
    assert (
        step == 60 and line.startswith("loss spike: 9.000, where the 59 steps before had 3.") and "(median 3." in line
    )


@pytest.mark.parametrize(
    "losses",
    [
        [3.0] * 60 + [3.29],  # not 0.3 nats
        [9.0] * 60 + [9.85],  # not a tenth
        [3.0, 4.0] * 30 + [4.2],  # as wide as the noise
        [3.0] * 30 + [9.0],  # too early to know
        [None] * 60 + [9.0],
        [5 - n / 20 for n in range(60)],
    ],
)
def test_no_spike(losses):
    assert lines_of(CurveWatch(), [(loss, 100.0) for loss in losses]) == []


def test_a_second_spike_soon_after_the_first_is_not_named():
    losses = [3.0] * 40 + [9.0] + [3.0] * 20 + [9.0]
    assert [step for step, _ in lines_of(CurveWatch(), [(loss, 100.0) for loss in losses])] == [41]


def test_a_spike_after_a_quiet_time_is_named_again():
    losses = [3.0] * 40 + [9.0] + [3.0] * REMEMBERED + [9.0]
    assert [step for step, _ in lines_of(CurveWatch(), [(loss, 100.0) for loss in losses])] == [41, len(losses)]


def test_another_depth_starts_over():
    watch = CurveWatch()
    assert lines_of(watch, [(1.0, 100.0)] * 60) == [] and lines_of(watch, [(3.0, 40.0)] * 60, depth=4) == []
    assert [step for step, _ in lines_of(watch, [(9.0, 40.0)], depth=4)] == [1]


def test_falling_speed():
    steps = [(3.0, 5.0)] * WARM_UP + [(3.0, 100.0)] * 40 + [(3.0, 60.0)] * 40 + [(3.0, 95.0)] * 40
    (fell, said), (back, after) = lines_of(CurveWatch(), steps)
    assert WARM_UP + 40 < fell <= WARM_UP + 40 + SPEED_STEPS and back > WARM_UP + 80
    assert said.startswith("the speed has fallen: ") and "100 before" in said and after.startswith("the speed is back")
    dips = [(3.0, 100.0 if n % 4 else 20.0) for n in range(200)]
    assert lines_of(CurveWatch(), dips) == []


def watch_of(limit: float = 0.01, **changes: Any) -> MemoryWatch:
    """A watch of a run of 100 steps with two rows, whose probes are given by the test."""
    training = SimpleNamespace(steps=100, batch_size=changes.get("batch_size", 2))
    recipe: Any = SimpleNamespace(
        training=training,
        logging=SimpleNamespace(memory_probe=limit),
        memory=SimpleNamespace(mode=changes.get("mode", "hmt")),
    )
    budget = SimpleNamespace(step=9, warm_up_steps=4)
    settings = SimpleNamespace(kept_memories=8, mode=changes.get("mode", "hmt"))
    executor: Any = SimpleNamespace(
        stages=1,
        reports=True,
        budget=budget,
        settings=settings,
        device=torch.device("cpu"),
        state=None,
    )
    return MemoryWatch(recipe, executor)


def probes(watch: MemoryWatch, monkeypatch, found: list[Probe], first: int = 50) -> list[str]:
    """Let a watch make these probes, from a step on; return what it says."""
    monkeypatch.setattr(watch, "read", lambda _: found.pop(0))
    watch.step_done(1.0, 1)
    window: Any = None
    return [line for step in range(first, first + len(found)) for line in watch.probe(window, step)[1]]


def costing(cost: float, spread: float = 0.0, recalls: int = 0, **mass: tuple[float, ...]) -> Probe:
    """A probe of 100 segments of 10 tokens, with this cost per token, and a spread over segments."""
    each = [10 * (cost + spread * (-1) ** n) for n in range(100)]
    sums = (sum(each), 1000.0, sum(d * d for d in each), sum(10 * d for d in each), 10_000.0)
    even = (1.0,) * 8
    return Probe(sums, mass.get("by_age", even), mass.get("from_oldest", even), recalls)


def test_cost_and_error():
    cost, error = pooled_cost([costing(0.5, 0.2)])
    # the standard deviation of a segment's mean is 0.2, of the mean of 100 segments a tenth of that
    assert cost == pytest.approx(0.5) and error == pytest.approx(0.02)
    assert math.isnan(pooled_cost([Probe((0.0,) * 5, (), (), 0)])[0])


def test_an_ignored_memory_is_named_once_and_so_is_its_use(monkeypatch):
    said = probes(watch_of(), monkeypatch, [costing(0.001, 0.01)] * 3 + [costing(0.5)] * 4)
    assert len(said) == 2
    assert said[0].startswith(
        "the memory is ignored: another document's memory costs 0.0010 nats per token (+- 0.0014)"
    )
    assert said[1].startswith("the memory is used now: another document's memory costs 0.")
    assert "no memory costs" in probes(watch_of(batch_size=1), monkeypatch, [costing(0.001)] * 3)[0]


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ([costing(0.5)] * 4, 50),  # used
        ([costing(0.001)], 50),  # one is not enough
        ([costing(0.001)] * 4, 5),  # so early no memory is used
        ([costing(0.001, 2.0)] * 4, 50),  # nobody can tell
        ([Probe((0.0,) * 5, (0.0,), (0.0,), 0)] * 4, 50),  # nothing to compare
    ],
)
def test_no_verdict(monkeypatch, found, first):
    assert probes(watch_of(), monkeypatch, list(found), first) == []


@pytest.mark.parametrize(
    ("mass", "where"),
    [
        ({"by_age": (0.2, 19.0, 0.1, 0, 0, 0, 0, 0)}, "98% of it goes to the memory 2 segments back"),
        ({"from_oldest": (19.9, 0.1, 0, 0, 0, 0, 0, 0)}, "99% of it goes to memory 1 of a document"),
    ],
)
def test_a_collapsed_recall(monkeypatch, mass, where):
    (said,) = probes(watch_of(), monkeypatch, [costing(0.5, recalls=20, **mass)] * 3)
    assert said == f"the recall has collapsed: {where}, in 20 segments"
    assert probes(watch_of(), monkeypatch, [costing(0.5, recalls=3, **mass)] * 3) == []
    spread = {"by_age": (10.0, 10.0, 0, 0, 0, 0, 0, 0)}
    assert probes(watch_of(), monkeypatch, [costing(0.5, recalls=20, **spread)] * 3) == []


def test_largest():
    assert largest([(1.0, 3.0), (0.0, 4.0)], "place {}") == (7 / 8, "place 2")
    assert largest([(0.0, 0.0)], "place {}")[0] == 0 and largest([], "place {}")[0] == 0


def probed_at(watch: MemoryWatch, monkeypatch, probe: Callable[[], float], steps: Iterable[float]) -> list[int]:
    """Take steps of the given durations and the probes that are due; return the steps before which a probe ran.

    At no time have the probes taken more than their share.
    """
    now, at = [0.0], []
    monkeypatch.setattr(memory_watch.time, "perf_counter", lambda: now[0])

    def read(_: Window) -> Probe:
        now[0] += probe()
        return costing(0.5)

    monkeypatch.setattr(watch, "read", read)
    for step, seconds in enumerate(steps, 1):
        if watch.asked:
            at.append(step)
            values, _ = watch.probe(None, step)  # type: ignore[arg-type]
            assert values["share"] <= watch.limit, (step, values)
        watch.step_done(seconds, watch.due())
    return at


def test_probes_take_their_share_of_the_time(monkeypatch):
    """A probe that takes half as long as a step is made every 50 steps, with 1% of the time."""
    at = probed_at(watch_of(0.01), monkeypatch, lambda: 0.5, [1.0] * 500)
    assert at[0] == 152 and 149 <= at[-1] - at[-4] <= 151 and len(at) == 8


def test_probes_of_uneven_length_do_not_exceed_their_share(monkeypatch):
    """Steps and probes vary by a factor of 2 and more, and become 4 times longer with a deeper schedule."""
    draw = random.Random(0)
    steps = [draw.uniform(0.7, 1.4) * (4 if n > 1000 else 1) for n in range(3000)]
    watch = watch_of(0.01)
    assert len(probed_at(watch, monkeypatch, lambda: draw.uniform(0.3, 0.6) * watch.recent[-1], steps)) > 50


def test_a_probe_is_due_only_on_all_ranks(monkeypatch):
    monkeypatch.setattr(memory_watch, "world_size", lambda: 2)
    watch = watch_of(0.01)
    watch.step_done(1.0, 1)
    assert not watch.asked
    watch.step_done(1.0, 2)
    assert watch.asked


@pytest.mark.parametrize("changes", [{"mode": "backbone"}, {"limit": 0.0}])
def test_where_nothing_is_probed(changes):
    watch = watch_of(changes.pop("limit", 0.01), **changes)
    for _ in range(1000):
        watch.step_done(1.0, watch.due())
    assert not watch.asked


def test_the_sums_of_a_probe(monkeypatch):
    """Against sums by hand: only rows that have memories, labels, and a partner count."""
    watch, settings = watch_of(), SimpleNamespace(kept_memories=8, mode="hmt")
    labels = torch.tensor([[[1, 2], [3, IGNORED]], [[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    starts = torch.tensor([[True, False], [True, False], [True, True]])
    window = Window(labels.clamp_min(0), labels, torch.full((3, 2), 2), starts)
    valid = torch.tensor([[False, True, True, True, True, True]] * 3)
    states = [MemoryState(torch.zeros(3, 6, 1, 4), valid, torch.zeros(3, 0))] * 2
    recall = torch.tensor([[0.0, 0.7, 0.0, 0.0, 0.0, 0.3]] * 3)
    outputs = [
        SimpleNamespace(loss=torch.zeros(3), loss_instead=torch.full((1, 3), 9.0), recall=torch.zeros(3, 0)),
        SimpleNamespace(loss=torch.tensor([1.0, 2, 3]), loss_instead=torch.tensor([[2.0, 4, 9]]), recall=recall),
    ]
    watch.executor = SimpleNamespace(  # type: ignore[assignment]
        read=lambda *_, **__: zip(outputs, states, strict=True),
        stages=1,
        reports=True,
        settings=settings,
        device=torch.device("cpu"),
        state=None,
    )
    monkeypatch.setattr(memory_watch, "all_reduce_sum", lambda sums: sums)
    found = watch.read(window)
    # segment 1 of rows 0 and 1, which are each other's partner: costs 1 and 2, tokens 1 and 2
    assert found.sums == (3.0, 3.0, 5.0, 5.0, 5.0) and found.recalls == 2
    assert found.by_age[:5] == pytest.approx((0.6, 0, 0, 0, 1.4)) and sum(found.by_age[5:]) == 0
    assert found.from_oldest[:5] == pytest.approx((1.4, 0, 0, 0, 0.6))
    watch.executor.stages = 2
    last = watch.read(window)
    assert last.sums == found.sums and last.recalls == 0  # its states are those after the window
    watch.executor.reports = False
    assert set(watch.read(window).sums) == {0.0}


@pytest.mark.parametrize(("which", "counted"), [("swapped", 0.0), ("none", 2.0)])
def test_a_row_without_a_partner(monkeypatch, which, counted):
    """It has nobody's memories to be read with; without any it can be read."""
    watch = watch_of(mode="rmt")
    watch.which = which
    labels = torch.tensor([[[1, 2]], [[3, 4]]])
    window = Window(labels, labels, torch.full((2, 1), 2), torch.tensor([[False], [True]]))
    output = SimpleNamespace(loss=torch.zeros(2), loss_instead=torch.ones(1, 2), recall=torch.zeros(2, 0))
    monkeypatch.setattr(watch.executor, "read", lambda *_, **__: [(output, None)], raising=False)
    monkeypatch.setattr(memory_watch, "all_reduce_sum", lambda sums: sums)
    assert watch.read(window).sums[1] == counted
