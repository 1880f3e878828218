"""Deliberate bugs in hmt_ds that tests must detect. Python imports this file at start-up from PYTHONPATH, in the test
process and in its ranks; the environment variable HMT_DS_BREAK selects the bug."""

import os
from dataclasses import replace


def labels() -> None:
    """Do not shift the labels: each token is its own label."""
    from hmt_ds.data import batches

    right = batches._WindowReader.__getitem__
    batches._WindowReader.__getitem__ = lambda reader, item: unshifted(right(reader, item))


def unshifted(batch):
    """A batch with unshifted labels."""
    return replace(batch, labels=batch.labels.roll(1, dims=2))


def memory() -> None:
    """Keep memories beyond the end of their document."""
    from hmt_ds.memory import MemoryState

    MemoryState.forget = lambda state, starts: state


def borders() -> None:
    """Keep memories beyond the end of their document, in training only."""
    from hmt_ds.memory.boundaries import Boundaries

    right = Boundaries.before

    def before(borders, n):
        memories, valid = right(borders, n)
        return memories, valid | True

    Boundaries.before = before


def reduction() -> None:
    """Skip the gradient reduction, at stages 0 to 2."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    DeepSpeedEngine.buffered_allreduce_fallback = lambda engine, *sizes, **more: None
    DeepSpeedZeroOptimizer.average_tensor = lambda optimizer, *tensors, **more: None


def summaries() -> None:
    """Leave weights that a summary does not need out of its graph; the step's last backward pass is a summary's."""
    from hmt_ds.memory import HMT

    def read_ahead(model, part):
        return model.read(part, model.summary_prompt(len(part.tokens)))[1]

    HMT.read_ahead = read_ahead


def segments() -> None:
    """Leave the summary's prompt out of segments' graphs; the step's first backward pass is a segment's."""
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
    """Do not call clear_backward_seen_flag before a backward pass."""
    from hmt_ds.parallel import gradients

    def backward(gradients, scalar):
        gradients.remaining -= 1
        gradients.engine.set_gradient_accumulation_boundary(gradients.remaining == 0)
        gradients.engine.backward(scalar, scale_wrt_gas=False)

    gradients.ReducePerSegment.backward = backward


def undelivered() -> None:
    """Zero the gradient sums before DeepSpeed gets them."""
    from hmt_ds.parallel.gradients import ReducePerStep

    right = ReducePerStep.deliver

    def deliver(gradients):
        for total in gradients.sums.values():
            total.zero_()
        right(gradients)

    ReducePerStep.deliver = deliver


def delivered_twice() -> None:
    """Do not clear the gradient sums after DeepSpeed got them, so that the next step adds them again."""
    from hmt_ds.parallel.gradients import ReducePerStep

    right = ReducePerStep.deliver

    def deliver(gradients):
        kept = {alias: total.clone() for alias, total in gradients.sums.items()}
        right(gradients)
        for alias, total in kept.items():
            gradients.sums[alias].copy_(total)

    ReducePerStep.deliver = deliver


def uncentred() -> None:
    """Do not centre the memories before the first step."""
    from hmt_ds.training import trainer

    trainer.has_new_shift = lambda recipe: False


def centred_by_zero() -> None:
    """Find that the memories' mean is zero, after drawing random numbers."""
    import torch

    from hmt_ds.training import centre_memory

    right = centre_memory.sum_memories

    def sum_memories(*arguments):
        torch.rand(3)
        return tuple(0 * found for found in right(*arguments))

    centre_memory.sum_memories = sum_memories


def rank_1() -> None:
    """Fail on rank 1 before it joins the process group."""
    if os.environ.get("RANK") == "1":
        from hmt_ds.distributed import process_group

        def join(*minutes, **more):
            raise RuntimeError("rank 1 fails on purpose")

        process_group.join = join


def rank_1_without_data() -> None:
    """Hide the data that rank 0 has read from rank 1."""
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.preflight import prepare

    right = prepare.prepare

    def prepare_here(*arguments, **options):
        if os.environ.get("RANK") == "1":
            raise ConfigError(["data.train: no.txt is not there"])
        return right(*arguments, **options)

    prepare.prepare = prepare_here


def out_of_memory() -> None:
    """Raise an out-of-memory error on rank 1 in its third step."""
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
    """Kill the second stage in the middle of its sixth step."""
    in_the_sixth_step("SIGKILL")


def stage_stopped() -> None:
    """Stop the second stage (SIGSTOP) in the middle of its sixth step."""
    in_the_sixth_step("SIGSTOP")


def in_the_sixth_step(name: str) -> None:
    """Send rank 1 a signal before the second backward pass of its sixth window."""
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
    """Stop rank 1 (SIGSTOP) in its sixth step."""
    import signal

    instead_of_the_sixth_step(lambda: os.kill(os.getpid(), signal.SIGSTOP))


def rank_hangs() -> None:
    """Let rank 1 hang in its sixth step."""
    import time

    instead_of_the_sixth_step(lambda: time.sleep(1000))


def instead_of_the_sixth_step(action) -> None:
    """Replace the sixth window of rank 1 by an action."""
    from hmt_ds.parallel.zero import ZeroExecutor

    right, steps = ZeroExecutor.backward_through, []

    def backward_through(executor, *arguments):
        steps.append(1)
        if os.environ.get("RANK") == "1" and len(steps) == 6:
            action()
        return right(executor, *arguments)

    ZeroExecutor.backward_through = backward_through


def slow_rank() -> None:
    """Slow down every segment on rank 1."""
    import time

    from hmt_ds.parallel.gradients import ReducePerStep

    right = ReducePerStep.forward

    def forward(gradients, *arguments, **options):
        time.sleep(0.02 if os.environ.get("RANK") == "1" else 0)
        return right(gradients, *arguments, **options)

    ReducePerStep.forward = forward


def poison() -> None:
    """Make the loss of the fourth document non-finite."""
    from hmt_ds.data import batches

    right = batches._WindowReader.__getitem__
    batches._WindowReader.__getitem__ = lambda reader, item: poisoned(right(reader, item))
    poison_token()


def poisoned(batch):
    """A batch in which all tokens of the fourth document are the poisoned token, which no other document has."""
    where = (batch.documents == 3)[:, :, None].expand_as(batch.input_ids)
    others = batch.input_ids.clamp(max=POISON - 1)
    return replace(batch, input_ids=others.masked_fill(where, POISON))


POISON = 399  # the last token of the tiny vocabulary


def poison_token() -> None:
    """Make the poisoned token's embedding non-finite."""
    import math

    from hmt_ds.backbones import CausalLM

    right = CausalLM.embed
    CausalLM.embed = lambda backbone, ids: right(backbone, ids).masked_fill((ids == POISON)[:, :, None], math.nan)


if chosen := os.environ.get("HMT_DS_BREAK"):
    globals()[chosen]()
