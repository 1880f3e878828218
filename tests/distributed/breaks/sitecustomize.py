"""Deliberate breaks of hmt_ds, for tests that must turn red. Python imports this file at its start, from PYTHONPATH, in
each process of a test run and in the ranks that it starts; HMT_DS_BREAK names the break."""

import os
from dataclasses import replace


def labels() -> None:
    """Labels are the tokens themselves instead of the ones after them."""
    from hmt_ds.data import batches

    right = batches._WindowReader.__getitem__
    batches._WindowReader.__getitem__ = lambda reader, item: unshifted(right(reader, item))


def unshifted(batch):
    """A batch with labels that stand one place too late."""
    return replace(batch, labels=batch.labels.roll(1, dims=2))


def memory() -> None:
    """Memories outlive their document."""
    from hmt_ds.memory import MemoryState

    MemoryState.forget = lambda state, starts: state


def borders() -> None:
    """Memories outlive their document, in training alone."""
    from hmt_ds.memory.borders import Borders

    right = Borders.before

    def before(borders, n):
        memories, valid = right(borders, n)
        return memories, valid | True

    Borders.before = before


def reduction() -> None:
    """No rank reduces its gradients, at stages 0 to 2."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    DeepSpeedEngine.buffered_allreduce_fallback = lambda engine, *sizes, **more: None
    DeepSpeedZeroOptimizer.average_tensor = lambda optimizer, *tensors, **more: None


def rank_1() -> None:
    """Rank 1 fails before it joins the others."""
    if os.environ.get("RANK") == "1":
        from hmt_ds.parallel import distributed

        def join(*minutes, **more):
            raise RuntimeError("rank 1 fails on purpose")

        distributed.join = join


if chosen := os.environ.get("HMT_DS_BREAK"):
    globals()[chosen]()
