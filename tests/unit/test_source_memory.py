"""Which memory settings a run may have that starts from a trained model."""

from contextlib import nullcontext

import pytest

from hmt_ds.backbones.converted import compare_memory
from hmt_ds.backbones.model import BackboneError
from hmt_ds.memory.settings import MemorySettings


@pytest.mark.parametrize(
    ("stored", "ours", "fits"),
    [("adapted", "paper", False), ("paper", "adapted", True), ("adapted", "adapted", True), ("paper", "paper", True)],
)
def test_a_backbone_that_was_trained_behind_a_sink_keeps_it(stored, ours, fits):
    """Without memory there is still the sink of interface adapted: the recipe may add one, and not drop it."""
    memory = MemorySettings(segment_length=8, mode="backbone", interface=ours)
    with nullcontext() if fits else pytest.raises(BackboneError, match="trained with adapted"):
        compare_memory({"mode": "backbone", "interface": stored}, memory)
