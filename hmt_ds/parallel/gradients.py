"""When gradients are reduced over the ranks: after each backward pass, or once per optimizer step.

After each pass: DeepSpeed shards what the pass has left, and sums the shards in float32. Nothing whole stands.

Once per step: each rank sums its own gradients in float32 first. The model that reads is a second tree of modules over
the same weights, so that DeepSpeed's hooks are not in its way; they run for every backward pass, and at stage 3 for
every module. In the end the sums are handed to DeepSpeed's engine as if one backward pass had made them. That takes 4
bytes for each trained weight on every rank, and at stage 3 the whole weights for as long as the step lasts. At stage 1
in bf16 DeepSpeed holds such sums itself, whole: there they are made in its own.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from hmt_ds.distributed.deepspeed_internals import (
    all_reduce_fp32_sums,
    fp32_gradient_sums,
    gradient_shard,
    start_backward,
)
from hmt_ds.distributed.engine import Engine
from hmt_ds.memory import HMT
from hmt_ds.memory.bptt import Phase
from hmt_ds.parallel.activation_budget import CAPTURED
from hmt_ds.parallel.cuda_graphs import GraphedReader
from hmt_ds.parallel.layer_groups import LayerGroups


class ReducePerSegment:
    """Every backward pass goes through the engine.

    Args:
        model: the one that DeepSpeed is given.
    """

    def __init__(self, model: HMT):
        self.model = model

    def attach(self, engine: Engine[HMT]) -> None:
        """Work with this engine."""
        self.engine = engine
        move_buffers(self.model, engine.device)
        for module in self.model.modules():
            if isinstance(module, LayerGroups):
                module.gather_ahead(engine)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Read a segment or a summary."""
        return self.engine(*arguments, **options)

    @contextmanager
    def accumulate(self, passes: int, scale: float, phase: Phase) -> Iterator[None]:
        """Around all backward passes of an optimizer step, of which there are so many."""
        self.remaining = passes
        yield
        assert self.remaining == 0, f"{self.remaining} of {passes} backward passes are missing"

    def backward(self, scalar: Tensor) -> None:
        """The backward pass of one segment; the last one of a step is where DeepSpeed finishes the gradients."""
        self.remaining -= 1
        start_backward(self.engine)
        self.engine.set_gradient_accumulation_boundary(self.remaining == 0)
        self.engine.backward(scalar, scale_wrt_gas=False)

    def step_done(self) -> None:
        """A step is over."""


class ReducePerStep:
    """Backward passes are torch's own; the engine gets the sums.

    Args:
        model: the one that DeepSpeed is given; make this before the engine, which puts hooks into it.
        autocast: the context in which the model reads.
        graphs: capture the readings in CUDA graphs, and replay them.
    """

    def __init__(self, model: HMT, autocast: AbstractContextManager[Any], graphs: bool = False):
        self.autocast, self.weights = autocast, list(model.parameters())
        self.steps, self.graphs = 0, graphs
        self.replays: GraphedReader | None = None
        self.aliases = [nn.Parameter(weight.detach(), weight.requires_grad) for weight in self.weights]
        self.pairs = list(zip(self.weights, self.aliases, strict=True))
        self.model = copy.deepcopy(model, {id(weight): alias for weight, alias in self.pairs})
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.in_place = False  # whether they are DeepSpeed's own
        self.shared: list[tuple[nn.Parameter, Any]] = []  # weights that other ranks of a group have too
        for alias in self.aliases:
            if alias.requires_grad:
                alias.register_post_accumulate_grad_hook(self.add)

    def attach(self, engine: Engine[HMT]) -> None:
        """Work with this engine."""
        self.engine, self.sharded = engine, engine.zero_optimization_stage() == 3
        move_buffers(self.model, engine.device)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Read a segment or a summary."""
        return (self.replays or self.forward_eagerly)(*arguments, **options)

    def forward_eagerly(self, *arguments: Any, **options: Any) -> Any:
        """Read kernel by kernel."""
        with self.autocast:
            return self.model(*arguments, **options)

    def step_done(self) -> None:
        """A step is over. One is measured, the next compiles what the plan made of it; what follows is captured."""
        self.steps += 1
        if self.graphs and self.replays is None and self.steps + 1 >= CAPTURED:
            torch.cuda.empty_cache()
            self.replays = GraphedReader(self.forward_eagerly)
        elif self.replays:
            self.replays.complete = True

    @contextmanager
    def accumulate(self, passes: int, scale: float, phase: Phase) -> Iterator[None]:
        """Around all backward passes of an optimizer step. At stage 3 the weights are whole for so long."""
        self.scale = scale
        with deepspeed.zero.GatheredParameters(self.weights, enabled=self.sharded):
            if any(weight.data_ptr() != alias.data_ptr() for weight, alias in self.pairs):
                for weight, alias in self.pairs:
                    alias.data = weight.data
                self.replays = None  # what was captured reads where the weights were
            self.make_sums()
            with self.without_shards():
                yield
            with phase("reduce"):
                self.deliver()
            for alias in self.aliases if self.sharded else ():
                alias.data = alias.data.new_empty(0)

    @contextmanager
    def without_shards(self) -> Iterator[None]:
        """At stage 3 DeepSpeed holds a float32 shard of the gradients, which nobody reads before the sums are
        delivered: for so long its memory is lent to activations."""
        shards = gradient_shard(self.engine)
        if shards is None:
            yield
            return
        storage = shards.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        yield
        storage.resize_(size)
        shards.zero_()

    def make_sums(self) -> None:
        """Zeros, in the first step, before any activation: what stays must not stand between what comes and goes."""
        if self.sums:
            return
        lent = fp32_gradient_sums(self.engine)
        self.in_place = bool(lent)
        for weight, alias in self.pairs:
            if alias.requires_grad and self.in_place:
                self.sums[alias] = lent[weight].view_as(alias)
            elif alias.requires_grad:
                self.sums[alias] = torch.zeros_like(alias, dtype=torch.promote_types(alias.dtype, torch.float32))

    def backward(self, scalar: Tensor) -> None:
        """The backward pass of one segment."""
        (scalar * self.scale).backward()

    def add(self, alias: nn.Parameter) -> None:
        """Move what a backward pass has left at a weight to its sum."""
        assert alias.grad is not None
        self.sums[alias].add_(alias.grad)
        alias.grad = None

    def deliver(self) -> None:
        """Hand the sums to the engine, which reduces them over the ranks; afterwards they are zero."""
        for alias, group in self.shared:
            torch.distributed.all_reduce(self.sums[alias], group=group)
        self.engine.set_gradient_accumulation_boundary(True)
        if self.in_place:
            all_reduce_fp32_sums(self.engine)
            return
        trained = [(weight, self.sums[alias]) for weight, alias in self.pairs if alias.requires_grad]

        def forward() -> Tensor:
            return torch.stack([DeliverGradient.apply(weight, total, self.scale) for weight, total in trained]).sum()

        # through the engine's forward pass, in which DeepSpeed makes itself ready for a backward pass
        module: nn.Module = self.engine.module
        module.forward = forward
        try:
            scalar = self.engine()
        finally:
            del module.forward
        self.engine.backward(scalar, scale_wrt_gas=False)


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move a model's buffers to a device, in place; parameters stay where they are.

    DeepSpeed moves the model it is given, but neither a copy of that model nor buffers made under ``zero.Init``. A
    rotary frequency left on the host is copied in every forward pass, and CUDA graphs cannot capture that copy.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


class DeliverGradient(torch.autograd.Function):
    """A zero whose gradient with respect to a weight is a sum that was made elsewhere."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, total: Tensor, scale: float) -> Tensor:
        ctx.total, ctx.scale, ctx.dtype = total, scale, weight.dtype
        return torch.zeros((), device=weight.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # the engine multiplies its scalar by the scale that the sums bear already
        handed_over = (ctx.total * (gradient / ctx.scale)).to(ctx.dtype)
        ctx.total.zero_()
        return handed_over, None, None
