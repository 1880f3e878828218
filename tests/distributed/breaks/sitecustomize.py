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
    from hmt_ds.memory.boundaries import Boundaries

    right = Boundaries.before

    def before(borders, n):
        memories, valid = right(borders, n)
        return memories, valid | True

    Boundaries.before = before


def reduction() -> None:
    """No rank reduces its gradients, at stages 0 to 2."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    DeepSpeedEngine.buffered_allreduce_fallback = lambda engine, *sizes, **more: None
    DeepSpeedZeroOptimizer.average_tensor = lambda optimizer, *tensors, **more: None


def summaries() -> None:
    """Weights that a summary does not need take no part in it; and a window's first summary is a step's last pass."""
    from hmt_ds.memory import HMT

    def read_ahead(model, part):
        return model.read(part, model.summary_prompt(len(part.tokens)))[1]

    HMT.read_ahead = read_ahead


def segments() -> None:
    """The summary's prompt takes no part in segments; and a window's last segment is a step's first pass."""
    from hmt_ds.memory.cell import HMT, Prompt

    right, usual = HMT.memory_prompt, Prompt.forward

    def memory_prompt(model, *arguments):
        model.summary_prompt.apart = True
        try:
            return right(model, *arguments)
        finally:
            model.summary_prompt.apart = False

    def forward(prompt, batch):
        rows = usual(prompt, batch)
        return rows.detach() if getattr(prompt, "apart", False) else rows

    HMT.memory_prompt, Prompt.forward = memory_prompt, forward


def flags() -> None:
    """DeepSpeed is not told where a backward pass begins, unless a forward pass does it."""
    from hmt_ds.parallel import gradients

    def backward(gradients, scalar):
        gradients.remaining -= 1
        gradients.engine.set_gradient_accumulation_boundary(gradients.remaining == 0)
        gradients.engine.backward(scalar, scale_wrt_gas=False)

    gradients.ReducePerSegment.backward = backward


def undelivered() -> None:
    """The sums of a step are zeros when they are handed over."""
    from hmt_ds.parallel.gradients import ReducePerStep

    right = ReducePerStep.deliver

    def deliver(gradients):
        for total in gradients.sums.values():
            total.zero_()
        right(gradients)

    ReducePerStep.deliver = deliver


def delivered_twice() -> None:
    """The sums of a step are handed over, and not cleared: the next step hands them over again."""
    from hmt_ds.parallel.gradients import ReducePerStep

    right = ReducePerStep.deliver

    def deliver(gradients):
        kept = {alias: total.clone() for alias, total in gradients.sums.items()}
        right(gradients)
        for alias, total in kept.items():
            gradients.sums[alias].copy_(total)

    ReducePerStep.deliver = deliver


def rank_1() -> None:
    """Rank 1 fails before it joins the others."""
    if os.environ.get("RANK") == "1":
        from hmt_ds.distributed import process_group

        def join(*minutes, **more):
            raise RuntimeError("rank 1 fails on purpose")

        process_group.join = join


def rank_1_without_data() -> None:
    """Rank 1 does not find the data that rank 0 has read."""
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.preflight import prepare

    right = prepare.prepare

    def prepare_here(*arguments, **options):
        if os.environ.get("RANK") == "1":
            raise ConfigError(["data.train: no.txt is not there"])
        return right(*arguments, **options)

    prepare.prepare = prepare_here


def out_of_memory() -> None:
    """Rank 1's GPU is full in its third step."""
    import torch

    from hmt_ds.parallel.zero import ZeroExecutor

    right, steps = ZeroExecutor.train_batch, []

    def train_batch(executor, *arguments, **options):
        steps.append(1)
        if os.environ.get("RANK") == "1" and len(steps) == 3:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 4.10 GiB. GPU 0 has a total capacity of 79.18 GiB of which "
                "1012.19 MiB is free. Including non-PyTorch memory, this process has 78.18 GiB memory in use."
            )
        return right(executor, *arguments, **options)

    ZeroExecutor.train_batch = train_batch


def stage_killed() -> None:
    """The second stage kills itself in the middle of its sixth step."""
    in_the_sixth_step("SIGKILL")


def stage_stopped() -> None:
    """The second stage stops there, and stays so."""
    in_the_sixth_step("SIGSTOP")


def in_the_sixth_step(name: str) -> None:
    """Rank 1 sends itself a signal before the second backward pass of its sixth window."""
    import signal

    from hmt_ds.parallel.pipeline.stage import StagePass

    right, seen = StagePass.backward, {}

    def backward(stage, action):
        seen.setdefault(stage, []).append(action)
        if os.environ.get("RANK") == "1" and len(seen) == 6 and len(seen[stage]) == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return right(stage, action)

    StagePass.backward = backward


def rank_stopped() -> None:
    """Rank 1 stops in its sixth step."""
    import signal

    instead_of_the_sixth_step(lambda: os.kill(os.getpid(), signal.SIGSTOP))


def rank_hangs() -> None:
    """Rank 1 never comes to the end of its sixth step."""
    import time

    instead_of_the_sixth_step(lambda: time.sleep(1000))


def instead_of_the_sixth_step(action) -> None:
    """What rank 1 does when it should read its sixth window."""
    from hmt_ds.parallel.zero import ZeroExecutor

    right, steps = ZeroExecutor.backward_through, []

    def backward_through(executor, *arguments):
        steps.append(1)
        if os.environ.get("RANK") == "1" and len(steps) == 6:
            action()
        return right(executor, *arguments)

    ZeroExecutor.backward_through = backward_through


def slow_rank() -> None:
    """Rank 1 needs longer for every segment."""
    import time

    from hmt_ds.parallel.gradients import ReducePerStep

    right = ReducePerStep.read

    def read(gradients, *arguments, **options):
        time.sleep(0.02 if os.environ.get("RANK") == "1" else 0)
        return right(gradients, *arguments, **options)

    ReducePerStep.read = read


def poison() -> None:
    """Whatever reads the fourth document has no finite loss."""
    from hmt_ds.data import batches

    right = batches._WindowReader.__getitem__
    batches._WindowReader.__getitem__ = lambda reader, item: poisoned(right(reader, item))
    poison_token()


def poisoned(batch):
    """A batch in which the fourth document's tokens are all one that nothing else has."""
    where = (batch.documents == 3)[:, :, None].expand_as(batch.input_ids)
    others = batch.input_ids.clamp(max=POISON - 1)
    return replace(batch, input_ids=others.masked_fill(where, POISON))


POISON = 399  # the last token of the tiny vocabulary


def poison_token() -> None:
    """Its embedding is not finite."""
    import math

    from hmt_ds.backbones import CausalLM

    right = CausalLM.embed
    CausalLM.embed = lambda backbone, ids: right(backbone, ids).masked_fill((ids == POISON)[:, :, None], math.nan)


if chosen := os.environ.get("HMT_DS_BREAK"):
    globals()[chosen]()
