"""The forward passes of a pipeline stage that keep their graphs, fitted to the measured step."""

import pytest
import torch
from fake_gpu import DEPTH, SEGMENT, SETTINGS, SUMMARY, WINDOW_SEGMENT, WINDOW_SUMMARY, FakeGpu

from hmt_ds.parallel.activation_budget import MARGIN, MEASURED
from hmt_ds.parallel.compute_choice import ComputeSettings
from hmt_ds.parallel.pipeline.schedule import pipeline_schedule
from hmt_ds.parallel.pipeline.stage_budget import StageBudget

GPU = torch.device("cuda")
ORDER = pipeline_schedule(2, 2, 2)[0]  # s0 s0 s1 s1 F0 F0 F1 F1, and backward
READ = [action for action in ORDER if not action.backward]


@pytest.mark.parametrize(("spare", "kept"), [(0, 0), (699, 0), (700, 1), (2 * 700, 2), (4 * 700 + 299, 4), (3100, 5)])
def test_a_stage_keeps_what_goes_backward_first(spare, kept):
    """As many of the last forward passes as fit keep graphs; recalls in the last stage's order change nothing."""
    found = StageBudget(ComputeSettings(), SETTINGS, DEPTH, GPU)
    found.segment_bytes, found.summary_bytes, found.free_bytes = SEGMENT, SUMMARY, spare
    last = pipeline_schedule(2, 2, 2)[1]
    assert len(last) > len(ORDER) and found.choose_graphs(ORDER) == found.choose_graphs(last) == set(
        READ[len(READ) - kept :]
    )


@pytest.mark.parametrize(
    ("segments", "spare", "kept"), [(2, 3 * 700 - 1, 0), (2, 3 * 700, 4), (1, 2 * 700 - 1, 0), (1, 2 * 700, 2)]
)
def test_without_memory_a_stage_keeps_all_or_nothing(segments, spare, kept):
    """Its actions go backward in the order in which they were read; of 3 stages, three stand at a time, or all two."""
    order = pipeline_schedule(3, segments, 2, mode="backbone")[0]
    found = StageBudget(ComputeSettings(), SETTINGS, DEPTH, GPU)
    found.segment_bytes, found.free_bytes = SEGMENT, spare
    assert len(found.choose_graphs(order)) == kept


@pytest.mark.parametrize(("recompute", "kept"), [("none", 8), ("selective", 8), ("segment", 0), ("auto", 4)])
def test_the_measured_step_of_a_stage(monkeypatch, recompute, kept):
    """A value that the recipe fixes is not changed by the measurement."""
    gpu = FakeGpu()
    gpu.total = int(
        (gpu.before + 4 * SEGMENT + SUMMARY) / MARGIN
    )  # beside the peak, with one graph in it, three and a rest
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    found = StageBudget(ComputeSettings(recompute), SETTINGS, DEPTH, GPU)
    for _ in range(MEASURED):
        read = found.measure(gpu.read)
        for part in (WINDOW_SUMMARY, WINDOW_SEGMENT):
            gpu.allocated = gpu.before
            read(part)
        found.backward_done()
        found.step_done()
    assert (found.segment_bytes, found.summary_bytes) == (SEGMENT, SUMMARY) and len(found.choose_graphs(ORDER)) == kept
