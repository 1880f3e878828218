"""A stage's passes without other stages: what an item draws. Gradients are compared in tests/distributed."""

from types import SimpleNamespace

import torch

from hmt_ds.memory import RandomState
from hmt_ds.parallel.pipeline.schedule import Item, Kind
from hmt_ds.parallel.pipeline.stage import Reading, StagePass
from hmt_ds.parallel.pipeline.stashed_inputs import StashedInputs

CPU = torch.device("cpu")


def test_an_item_that_is_read_again_draws_the_same_and_later_ones_their_own():
    """Else a window would draw the numbers of the window before, from its second item on."""
    items = [Item(Kind.MAIN, n, 0) for n in range(3)]
    stage = SimpleNamespace(random={}, inputs=StashedInputs(), device=CPU)
    stage.with_graph = lambda part, item, given: Reading(given, torch.rand(4))
    torch.manual_seed(0)
    drawn = []
    for item in items:
        stage.random[item] = RandomState(CPU)
        stage.inputs.put(item, None)
        drawn.append(torch.rand(4))
    expected = torch.rand(4)
    torch.manual_seed(0)
    torch.rand(12)
    for item, first in zip(reversed(items), reversed(drawn), strict=True):
        assert torch.equal(StagePass.read_again(stage, item, None).hidden, first)
    assert torch.equal(torch.rand(4), expected)
    assert not stage.random and not len(stage.inputs)
