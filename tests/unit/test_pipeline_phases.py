"""The numbers that `hmt-ds bench` computes for a pipeline: recomputed positions, durations of passes, bubbles."""

from collections.abc import Sequence

import pytest

from hmt_ds.benchmark.pipeline_phases import (
    PipelineWindow,
    action_seconds,
    recomputed_positions,
    scheduled_bubbles,
    simulated_bubbles,
)
from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.pipeline.schedule import Action, Kind

# 10 + 2 + 2 x 1 positions per segment, 5 + 2 x 1 per summary
SIZES = MemorySettings(segment_length=10, recall_dim=8, sensory_tokens=2, cached_memories=3)


def window(segments: int, summary_group: int = 1, kept: Sequence[Sequence[Action]] = ((), ())) -> PipelineWindow:
    """Return a window of two micro-batches."""
    return PipelineWindow(segments, 2, summary_group, SIZES, kept)


def test_every_position_is_recomputed_except_for_kept_graphs():
    assert recomputed_positions(window(4), layers_again=False) == 4 * (14 + 7)
    assert recomputed_positions(window(4), layers_again=True) == 2 * 4 * (14 + 7)
    kept = [Action(Kind.SEGMENT, 3, 1), Action(Kind.SEGMENT, 3, 0), Action(Kind.SUMMARY, 3, 1)]
    assert recomputed_positions(window(4, 1, [kept, ()]), layers_again=False) == 4 * 21 - (2 * 14 + 7) / 2 / 2
    kept = [*kept[:2], Action(Kind.SUMMARY, 3, 0)]  # a summary pass over both micro-batches
    assert recomputed_positions(window(4, 2, [kept, ()]), layers_again=False) == 4 * 21 - (2 * 14 + 2 * 7) / 2 / 2


def test_durations_of_actions():
    """4 segment passes and 4 summary passes of half the positions, of which 2 and 1 keep their graphs: 4 x 2 + 4 x 1
    forward, 2 x 2 + 3 x 1 recomputed, and 4 x 6 + 4 x 3 backward."""
    kept = [Action(Kind.SEGMENT, 1, 1), Action(Kind.SEGMENT, 1, 0), Action(Kind.SUMMARY, 1, 1)]
    phases = {"forward": 8.0, "summary": 4.0, "recall": 0.4, "backward": 7.0 + 36.0}
    singles = action_seconds(phases, window(2), kept)
    assert singles == {
        (Kind.SEGMENT, False): 2,
        (Kind.SUMMARY, False): 1,
        (Kind.RECALL, False): pytest.approx(0.1),
        (Kind.SEGMENT, True): 2 + 6,
        (Kind.SUMMARY, True): 1 + 3,
        (Kind.RECALL, True): 0,
    }
    kept = [*kept[:2], Action(Kind.SUMMARY, 1, 0)]  # over two micro-batches: twice as long
    pairs = {(Kind.SUMMARY, False): 2, (Kind.SUMMARY, True): 2 + 6}
    assert action_seconds(phases | {"backward": 6.0 + 36.0}, window(2, 2), kept) == singles | pairs


@pytest.mark.parametrize("summary_group", [1, 2])
def test_bubbles_with_measured_durations(summary_group):
    """Equal stages have the bubbles of the schedule; beside a stage that takes twice as long the other idles half the
    time."""
    phases = {"forward": 8.0, "summary": 4.0, "recall": 0.0, "backward": 12.0 + 24.0}
    slower = {name: 2 * seconds for name, seconds in phases.items()}
    both = window(2, summary_group)
    equal = simulated_bubbles([phases] * 2, 1, both)
    assert equal == pytest.approx(scheduled_bubbles(2, both))
    assert equal == pytest.approx(simulated_bubbles([slower] * 2, 2, both))
    first, last = simulated_bubbles([phases, slower], 1, both)
    assert first == pytest.approx((1 + last) / 2) and first > 0.5 > last
