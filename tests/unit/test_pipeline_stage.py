"""A stage on its own: the dropout of recomputed passes. Gradients are compared in tests/distributed."""

from types import SimpleNamespace

import torch

from hmt_ds.memory import RandomState
from hmt_ds.parallel.pipeline.schedule import Action, Kind
from hmt_ds.parallel.pipeline.stage import StagePass
from hmt_ds.parallel.pipeline.stage_window import StageGraph
from hmt_ds.parallel.pipeline.stashed_inputs import StashedInputs

CPU = torch.device("cpu")


def test_recomputation_repeats_random_numbers_without_affecting_later_ones():
    """Otherwise a window would repeat the random numbers of the window before, from its second action on."""
    actions = [Action(Kind.SEGMENT, n, 0) for n in range(3)]
    stage = SimpleNamespace(random_states={}, window=SimpleNamespace(stash=StashedInputs()), device=CPU)
    stage.with_graph = lambda tokens, action, stage_input: StageGraph(stage_input, torch.rand(4))
    torch.manual_seed(0)
    drawn = []
    for action in actions:
        stage.random_states[action] = RandomState(CPU)
        stage.window.stash.put(action, None)
        drawn.append(torch.rand(4))
    expected = torch.rand(4)
    torch.manual_seed(0)
    torch.rand(12)
    for action, first in zip(reversed(actions), reversed(drawn), strict=True):
        assert torch.equal(StagePass.recompute(stage, action, None).hidden, first)
    assert torch.equal(torch.rand(4), expected)
    assert not stage.random_states and not len(stage.window.stash)
