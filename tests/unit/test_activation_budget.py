"""The number of segments that keep their activations: fixed by the recipe, or fitted to the measured step."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_gpu import DEPTH, SEGMENT, SETTINGS, SUMMARY, TOTAL, WINDOW_SEGMENT, WINDOW_SUMMARY, FakeGpu

from hmt_ds.distributed import process_group
from hmt_ds.memory import RecomputePlan
from hmt_ds.parallel import activation_budget, gradients
from hmt_ds.parallel.activation_budget import MARGIN, MEASURED, ActivationBudget
from hmt_ds.parallel.compute_choice import ComputeSettings
from hmt_ds.parallel.pipeline.stage_budget import StageBudget

FIRST = 2  # summaries that are no longer than a segment: 5 positions each, and 10
GPU = torch.device("cuda")


def measured(
    monkeypatch, gpu: FakeGpu | None = None, others: list[float] | None = None, **compute: Any
) -> ActivationBudget:
    """A budget after the measured step, in which one segment and one summary kept their graphs.

    Args:
        others: the plan that fits on another rank.
    """
    gpu = gpu or FakeGpu()
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    monkeypatch.setattr(activation_budget, "all_reduce_min", lambda mine, device: list(map(min, mine, others or mine)))
    found = ActivationBudget(ComputeSettings(**{"cuda_graphs": "never"} | compute), SETTINGS, DEPTH, GPU)
    for _ in range(MEASURED):
        gpu.allocated = gpu.before
        read = found.measure(gpu.read)
        with torch.no_grad():
            assert read(WINDOW_SEGMENT, 5) == "read"
        batch = found.plan.summary_segments
        for part, share in ((WINDOW_SUMMARY, batch), (WINDOW_SEGMENT, 1), (WINDOW_SEGMENT, 0.5), (WINDOW_SUMMARY, 0.5)):
            gpu.allocated = gpu.before
            read(part, share)
        found.backward_done()
        gpu.peak = max(gpu.peak, gpu.before + gpu.behind)
        found.step_done()
    return found


def free_in(gpu: FakeGpu) -> float:
    """Bytes that the plan may spend: total memory less margin, other processes and the peak; caches do not count."""
    return MARGIN * gpu.total - gpu.others - (gpu.before + SEGMENT)


@pytest.mark.parametrize(
    ("recompute", "summary_batch", "plan"),
    [
        ("none", "auto", RecomputePlan(DEPTH, FIRST, DEPTH)),
        ("selective", 3, RecomputePlan(DEPTH, 3, DEPTH)),
        ("segment", "auto", RecomputePlan(1, FIRST, 0)),
        ("segment", 5, RecomputePlan(1, 5, 0)),
        ("segment+layer", 50, RecomputePlan(1, DEPTH, 0)),
        ("auto", "auto", RecomputePlan(1, FIRST, 0)),
        ("auto", 4, RecomputePlan(1, 4, 0)),
    ],
)
def test_before_anything_is_measured(recompute, summary_batch, plan):
    """The first plan, which stays on a CPU, where nothing is measured."""
    for device in (torch.device("cpu"), GPU):
        assert ActivationBudget(ComputeSettings(recompute, summary_batch), SETTINGS, DEPTH, device).plan == plan
    cpu, read = (
        ActivationBudget(ComputeSettings(recompute, summary_batch), SETTINGS, DEPTH, torch.device("cpu")),
        FakeGpu().read,
    )
    for _ in range(MEASURED + 1):
        assert cpu.measure(read) == read
        cpu.backward_done()
        cpu.step_done()
    assert cpu.plan == plan


@pytest.mark.parametrize(
    ("recompute", "segments", "batches"),
    [("none", DEPTH, DEPTH), ("selective", DEPTH, DEPTH), ("segment", 1, 0), ("segment+layer", 1, 0)],
)
def test_what_the_recipe_fixes_is_not_measured_away(monkeypatch, recompute, segments, batches):
    for total in (TOTAL, 12_000):
        plan = measured(monkeypatch, FakeGpu(total=total), recompute=recompute).plan
        assert (plan.kept_segments, plan.kept_summaries) == (segments, batches)
    assert measured(monkeypatch, summary_batch=5).plan.summary_segments == 5


def test_the_first_batches_are_no_larger_than_a_segment():
    """And all of one size."""
    sizes = {
        depth: ActivationBudget(ComputeSettings(), SETTINGS, depth, GPU).plan.summary_segments
        for depth in (1, 2, 3, 4, 7)
    }
    assert sizes == {1: 1, 2: 2, 3: 1, 4: 2, 7: 1}


def test_one_step_is_measured_by_its_largest_graphs(monkeypatch):
    """Without a graph nothing is kept, and the optimizer's peak does not count as theirs."""
    gpu = FakeGpu(behind=TOTAL)
    found = measured(monkeypatch, gpu)
    assert (found.segment_bytes, found.summary_bytes, found.peak) == (SEGMENT, FIRST * SUMMARY, gpu.before + SEGMENT)
    assert found.measure(gpu.read) == gpu.read, "it measures on, after it has planned"


def test_all_is_kept_where_it_fits(monkeypatch):
    """One batch has all summaries then, and no more batches are kept than there are."""
    assert measured(monkeypatch).plan == RecomputePlan(DEPTH, DEPTH, 1)


def test_no_summaries_are_kept_where_there_are_none(monkeypatch):
    """Modes rmt and backbone run no summaries."""
    found = measured(monkeypatch)
    found.summary_bytes = 0
    assert found.largest_plan() == [DEPTH, DEPTH, 0]


@pytest.mark.parametrize("graphs", ["never", "always"])
@pytest.mark.parametrize("total", [*range(11_000, 40_000, 500), 12_337])
def test_as_much_as_fits(monkeypatch, graphs, total):
    """Never more; and where a GPU has more memory, never less. Batches of summaries divide the window."""
    gpu = FakeGpu(total=total)
    plan, space = measured(monkeypatch, gpu, cuda_graphs=graphs).plan, free_in(gpu)
    spent = (plan.kept_segments - 1) * SEGMENT + plan.kept_summaries * plan.summary_segments * SUMMARY
    assert spent <= max(0, space) and DEPTH % plan.summary_segments == 0
    if graphs == "never" and plan.kept_segments < DEPTH:
        assert spent + SEGMENT > space and plan.kept_summaries == 0
    if graphs == "always" and plan.kept_segments > 1:  # what is captured keeps its memory, and so does its rehearsal
        assert spent + 2 * SEGMENT + plan.summary_segments * SUMMARY <= space
    larger = measured(monkeypatch, FakeGpu(total=total + 3000), cuda_graphs=graphs).plan
    assert larger.kept_segments >= plan.kept_segments and larger.summary_segments >= plan.summary_segments


def test_nothing_fits(monkeypatch):
    """One segment has its place already, and as many summaries as go into that."""
    assert measured(monkeypatch, FakeGpu(total=10_800)).plan == RecomputePlan(1, SEGMENT // SUMMARY, 0)


def test_what_others_hold_on_the_gpu_counts(monkeypatch):
    alone, beside = FakeGpu(total=17_100), FakeGpu(total=17_100, others=3 * SEGMENT)
    plans = [measured(monkeypatch, gpu).plan for gpu in (alone, beside)]
    assert 1 < plans[1].kept_segments == plans[0].kept_segments - 3 < DEPTH - 3


def test_graphs_take_room(monkeypatch):
    """Captured CUDA graphs keep their memory, so fewer segments can keep their activations."""
    kept = [measured(monkeypatch, FakeGpu(total=18_000), cuda_graphs=way).plan for way in ("never", "always")]
    assert kept[1].kept_segments < kept[0].kept_segments


def test_what_comes_behind_the_windows(monkeypatch):
    """The reduction and the optimizer can reuse the memory of activations, but not that of CUDA graphs."""
    still = SUMMARY // 2  # what the last reading of the fake step leaves standing
    for way, fewer in (("never", 0), ("always", 3)):
        gpus = [FakeGpu(total=18_000, behind=still + segments * SEGMENT) for segments in (0, 3)]
        small, large = [measured(monkeypatch, gpu, cuda_graphs=way, summary_batch=1).plan.kept_segments for gpu in gpus]
        assert 1 < large == small - fewer < DEPTH


def test_all_ranks_keep_what_fits_on_the_fullest(monkeypatch):
    """Each rank must make as many backward passes as the others."""
    assert measured(monkeypatch, others=[5, 4, 0]).plan == RecomputePlan(5, 4, 0)
    assert measured(monkeypatch, FakeGpu(total=10_800), others=[5, 4, 2]).plan == RecomputePlan(1, 2, 0)


def take_step(budget: ActivationBudget, gpu: FakeGpu, segments: int) -> None:
    """One step with windows of that many segments, each with the graph of one segment."""
    budget.begin_step(segments)
    read = budget.measure(gpu.read)
    gpu.allocated = gpu.before
    read(WINDOW_SEGMENT)
    budget.backward_done()
    budget.step_done()


@pytest.mark.parametrize("kind", [ActivationBudget, StageBudget])
def test_another_depth_is_planned_from_the_beginning(monkeypatch, kind):
    """The budget behaves as if there had been no windows of the earlier depth."""
    gpu = FakeGpu(total=17_000)
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    monkeypatch.setattr(activation_budget, "all_reduce_min", lambda mine, device: mine)
    found = kind(ComputeSettings(cuda_graphs="never"), SETTINGS, 2, GPU)
    first = found.plan, getattr(found, "free_bytes", None)
    for _ in range(MEASURED):
        take_step(found, gpu, 2)
    planned = found.plan, getattr(found, "free_bytes", None)
    assert planned != first
    gpu.before += 3 * SEGMENT
    found.plan_for(DEPTH)
    take_step(found, gpu, DEPTH)
    fresh = kind(ComputeSettings(cuda_graphs="never"), SETTINGS, DEPTH, GPU)
    assert found.depth == DEPTH and found.step == MEASURED and found.plan == fresh.plan
    assert getattr(found, "free_bytes", 0) == 0
    take_step(found, gpu, DEPTH)
    assert found.peak == gpu.before + SEGMENT
    if kind is ActivationBudget:
        assert 2 < found.plan.kept_segments < DEPTH
    else:
        assert 0 < found.free_bytes < planned[1]


@pytest.mark.parametrize("kind", [ActivationBudget, StageBudget])
def test_short_windows_of_a_random_depth_are_not_measured(monkeypatch, kind):
    """The benchmark's are: they are cut to have all kinds of work."""
    gpu = FakeGpu()
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    monkeypatch.setattr(activation_budget, "all_reduce_min", lambda mine, device: mine)
    for counts_from, step in ((DEPTH, 3), (1, 5)):
        found = kind(ComputeSettings(cuda_graphs="never"), SETTINGS, DEPTH, GPU)
        found.counts_from = counts_from
        for segments in (DEPTH, 1, DEPTH - 1, DEPTH):
            take_step(found, gpu, segments)
        assert found.step == step


def test_cuda_graphs_are_captured_in_windows_as_deep_as_planned_for(monkeypatch):
    """Else slots would be missing. For another depth they are given up."""
    made: list[SimpleNamespace] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        gradients, "GraphedForward", lambda forward: made.append(SimpleNamespace(complete=False)) or made[-1]
    )
    reduction = gradients.ReducePerStep(torch.nn.Linear(1, 1), nullcontext(), graphs=True)
    budget = ActivationBudget(ComputeSettings(cuda_graphs="always"), SETTINGS, 3, torch.device("cpu"))

    def graphs_of(segments: int) -> tuple[int, bool]:
        """Take a step; return how many graphs there have been, and whether the last ones are captured in it."""
        budget.begin_step(segments)
        reduction.begin_step(budget)
        captures = reduction.replays is not None and not reduction.replays.complete
        budget.step_done()
        reduction.step_done()
        return len(made), captures

    assert [graphs_of(segments) for segments in (3, 3, 2, 3)] == [(0, False)] * 4
    assert [graphs_of(segments) for segments in (2, 3, 3, 2)] == [(0, False), (1, True), (1, False), (1, False)]
    assert reduction.replays is made[0]
    budget.plan_for(4)
    assert graphs_of(4) == (1, False) and reduction.replays is None
    assert [graphs_of(4) for _ in range(4)] == [(1, False), (1, False), (2, True), (2, False)]


def test_smallest_of_all_ranks(monkeypatch):
    """Of each value by itself."""

    def all_reduce(values: torch.Tensor, operation: Any) -> None:
        assert operation == torch.distributed.ReduceOp.MIN
        values.copy_(torch.minimum(values, torch.tensor([9.0, 2.0, 5.0])))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert process_group.all_reduce_min([3, 4, 5], torch.device("cpu")) == [3, 2, 5]


@pytest.mark.parametrize(
    ("device", "graphs", "steps"), [("cpu", "never", 0), ("cuda", "never", 3), ("cuda", "always", 4)]
)
def test_a_run_is_at_speed_after_some_steps(device, graphs, steps):
    """The second step is measured, the third compiles the resulting plan, the fourth captures CUDA graphs."""
    compute = ComputeSettings(cuda_graphs=graphs)
    assert ActivationBudget(compute, SETTINGS, DEPTH, torch.device(device)).warm_up_steps == steps
