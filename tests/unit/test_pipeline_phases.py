"""What `hmt-ds bench` counts of a ring: positions read again, what actions take, bubbles."""

import pytest

from hmt_ds.benchmark.pipeline_phases import (
    costs_of,
    repeated_positions_on_pipeline,
    scheduled_bubbles,
    simulated_bubbles,
)
from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.pipeline.schedule import Action, Kind

# 10 + 2 + 2 x 1 positions a segment, 5 + 2 x 1 a summary
SIZES = MemorySettings(segment_length=10, recall_dim=8, sensory_tokens=2, cached_memories=3)


def test_a_ring_reads_every_position_twice_but_for_kept_graphs():
    assert repeated_positions_on_pipeline(SIZES, [(), ()], 2, 1, 4, layers_again=False) == 4 * (14 + 7)
    assert repeated_positions_on_pipeline(SIZES, [(), ()], 2, 1, 4, layers_again=True) == 2 * 4 * (14 + 7)
    kept = [Action(Kind.SEGMENT, 3, 1), Action(Kind.SEGMENT, 3, 0), Action(Kind.SUMMARY, 3, 1)]  # of two micro-batches
    assert (
        repeated_positions_on_pipeline(SIZES, [kept, ()], 2, 1, 4, layers_again=False) == 4 * 21 - (2 * 14 + 7) / 2 / 2
    )
    kept = [*kept[:2], Action(Kind.SUMMARY, 3, 0)]  # of both
    again = repeated_positions_on_pipeline(SIZES, [kept, ()], 2, 2, 4, layers_again=False)
    assert again == 4 * 21 - (2 * 14 + 2 * 7) / 2 / 2


def test_what_the_items_of_a_stage_take():
    """4 main actions and 4 summaries of half the positions; 2 and 1 of them kept. All in all 4 x 2 + 4 x 1 forward,
    2 x 2 + 3 x 1 of it again, and 4 x 6 + 4 x 3 backward."""
    kept = [Action(Kind.SEGMENT, 1, 1), Action(Kind.SEGMENT, 1, 0), Action(Kind.SUMMARY, 1, 1)]
    phases = {"forward": 8.0, "summary": 4.0, "recall": 0.4, "backward": 7.0 + 36.0}
    singles = costs_of(phases, 4, 1, kept, SIZES)
    assert singles == {
        (Kind.SEGMENT, False): 2,
        (Kind.SUMMARY, False): 1,
        (Kind.RECALL, False): pytest.approx(0.1),
        (Kind.SEGMENT, True): 2 + 6,
        (Kind.SUMMARY, True): 1 + 3,
        (Kind.RECALL, True): 0,
    }
    kept = [*kept[:2], Action(Kind.SUMMARY, 1, 0)]  # of two micro-batches: twice as long
    pairs = {(Kind.SUMMARY, False): 2, (Kind.SUMMARY, True): 2 + 6}
    assert costs_of(phases | {"backward": 6.0 + 36.0}, 4, 2, kept, SIZES) == singles | pairs


@pytest.mark.parametrize("summary_group", [1, 2])
def test_bubbles_by_the_times_of_each_stage(summary_group):
    """Equal stages have the schedule's; beside one that takes twice as long the other waits for half of the time."""
    phases = {"forward": 8.0, "summary": 4.0, "recall": 0.0, "backward": 12.0 + 24.0}
    slower = {name: 2 * seconds for name, seconds in phases.items()}
    alike = simulated_bubbles([phases] * 2, 1, 2, 2, summary_group, SIZES, [(), ()])
    assert alike == pytest.approx(scheduled_bubbles(2, 2, 2, summary_group, SIZES))
    assert alike == pytest.approx(simulated_bubbles([slower] * 2, 2, 2, 2, summary_group, SIZES, [(), ()]))
    first, last = simulated_bubbles([phases, slower], 1, 2, 2, summary_group, SIZES, [(), ()])
    assert first == pytest.approx((1 + last) / 2) and first > 0.5 > last
