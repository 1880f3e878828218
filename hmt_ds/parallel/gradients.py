"""Reduce gradients over the ranks: after every backward pass, or once per optimizer step.

:class:`ReducePerSegment`: DeepSpeed shards the gradients of one segment and sums the shards in fp32. No rank ever holds
a whole gradient.

:class:`ReducePerStep`: each rank sums its own gradients in fp32 buffers and gives the sums to DeepSpeed's engine as if
one backward pass had made them. Forward passes run on a second module tree that shares the weights, because DeepSpeed's
hooks in the first tree run for every backward pass (at stage 3 for every module). Costs 4 bytes per trained weight on
every rank, and at stage 3 the unsharded weights during the step.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from hmt_ds.distributed.deepspeed_internals import (
    all_reduce_fp32_sums,
    fp32_gradient_sums,
    gradient_shard,
    start_backward,
)
from hmt_ds.distributed.engine import Engine
from hmt_ds.memory import HMT
from hmt_ds.memory.bptt import Phase
from hmt_ds.parallel.activation_budget import CAPTURED, ActivationBudget, Forward
from hmt_ds.parallel.cuda_graphs import GraphedForward
from hmt_ds.parallel.layer_groups import LayerGroups


class ReducePerSegment:
    """Gradient reduction over the ranks after every segment's backward pass, by DeepSpeed's engine.

    Args:
        model: the model that the DeepSpeed engine wraps.
    """

    def __init__(self, model: HMT):
        self.model = model

    def attach(self, engine: Engine[HMT]) -> None:
        """Use a DeepSpeed engine, which was built around the model, for all later backward passes."""
        self.engine = engine
        move_buffers(self.model, engine.device)
        for module in self.model.modules():
            if isinstance(module, LayerGroups):
                module.prefetch_with(engine)

    @property
    def forward(self) -> Forward:
        """The forward pass of a segment, or of a batch of summaries (tokens of retrieval queries), to be called like
        ``HMT.forward``."""
        return self.engine

    @contextmanager
    def accumulate(self, passes: int, scale: float, phase: Phase) -> Iterator[None]:
        """Return a context for all backward passes of one optimizer step; when it ends, DeepSpeed's engine has the
        gradients.

        Args:
            passes: number of backward passes of the step.
            scale: loss scale; 1 except in fp16.
            phase: unused, since reduction is part of the backward passes.
        """
        self.remaining = passes
        yield
        assert self.remaining == 0, f"{self.remaining} of {passes} backward passes are missing"

    def backward(self, scalar: Tensor) -> None:
        """Run a backward pass from a scalar loss through DeepSpeed's engine, which reduces the gradients over the
        ranks.

        Args:
            scalar: the loss of one segment, 0-dimensional.
        """
        self.remaining -= 1
        start_backward(self.engine)
        self.engine.set_gradient_accumulation_boundary(self.remaining == 0)
        self.engine.backward(scalar, scale_wrt_gas=False)

    def begin_step(self, budget: ActivationBudget) -> None:
        """Do nothing: only the other kind of reduction (once per step) must prepare a step, to capture CUDA graphs."""

    def step_done(self) -> None:
        """Do nothing: only the other kind of reduction (once per step) must finish a step, to stop capturing CUDA
        graphs."""


class ReducePerStep:
    """Gradient reduction once per optimizer step, from fp32 sums that each rank keeps outside DeepSpeed's engine.

    Args:
        model: the model that the DeepSpeed engine wraps. This object must be created before the engine, which puts
            hooks into the model.
        autocast: the autocast context of forward passes.
        graphs: whether to capture forward and backward passes in CUDA graphs and replay them.
    """

    def __init__(self, model: HMT, autocast: AbstractContextManager[object], graphs: bool = False):
        self.autocast, self.weights = autocast, list(model.parameters())
        self.graphs = graphs
        self.replays: GraphedForward | None = None
        # The second tree has parameters of its own, so that gradients and hooks do not mix with DeepSpeed's; their data
        # is the weights' data (at stage 3 only during a step, while the weights are gathered).
        self.aliases = [nn.Parameter(weight.detach(), weight.requires_grad) for weight in self.weights]
        self.pairs = list(zip(self.weights, self.aliases, strict=True))
        self.model = copy.deepcopy(model, {id(weight): alias for weight, alias in self.pairs})
        self.sums: dict[nn.Parameter, Tensor] = {}
        self.in_place = False  # whether the sums are DeepSpeed's own buffers
        # tied weights that the first and the last stage both hold, with the group of the two
        self.tied: list[tuple[nn.Parameter, ProcessGroup]] = []
        for alias in self.aliases:
            if alias.requires_grad:
                alias.register_post_accumulate_grad_hook(self.add)

    def attach(self, engine: Engine[HMT]) -> None:
        """Use a DeepSpeed engine, which was built around the model, for the reduction and the optimizer."""
        self.engine, self.sharded = engine, engine.zero_optimization_stage() == 3
        move_buffers(self.model, engine.device)

    def forward(self, *arguments: object, **options: object) -> object:
        """Run the model on a segment, or on a batch of summaries, by replaying CUDA graphs if they were captured.

        Summaries are the tokens that retrieval queries are made of. Arguments and result are those of ``HMT.forward``.
        """
        run: Forward = self.replays or self.eager_forward
        return run(*arguments, **options)

    def eager_forward(self, *arguments: object, **options: object) -> object:
        """Run the model on a segment, or on a batch of summaries (tokens of retrieval queries), without CUDA graphs.

        Arguments and result are those of ``HMT.forward``.
        """
        with self.autocast:
            return self.model(*arguments, **options)

    def begin_step(self, budget: ActivationBudget) -> None:
        """Prepare an optimizer step; in the fourth step whose truncated-BPTT windows have full length, capture CUDA
        graphs.

        The second such step measures memory, and the third compiles the shapes of the resulting recomputation plan.
        Shorter windows would capture too few graphs. When the number of segments per window changes, old graphs are
        dropped and counting starts over.

        Args:
            budget: counts the steps, and chooses which segments keep their activations.
        """
        if budget.step < CAPTURED:
            self.replays = None
        elif self.graphs and self.replays is None and budget.counts:
            torch.cuda.empty_cache()
            self.replays = GraphedForward(self.eager_forward)

    def step_done(self) -> None:
        """Stop capturing CUDA graphs at the end of the optimizer step that captured them."""
        if self.replays:
            self.replays.complete = True

    @contextmanager
    def accumulate(self, passes: int, scale: float, phase: Phase) -> Iterator[None]:
        """Return a context for all backward passes of one optimizer step; when it ends, gradients are reduced over the
        ranks.

        At ZeRO-3 the unsharded weights are gathered for as long as the context is open.

        Args:
            passes: number of backward passes of the step.
            scale: loss scale; 1 except in fp16.
            phase: times the reduction: called with the name ``reduce``, returns a context around it.
        """
        self.scale = scale
        with deepspeed.zero.GatheredParameters(self.weights, enabled=self.sharded):
            if any(weight.data_ptr() != alias.data_ptr() for weight, alias in self.pairs):
                for weight, alias in self.pairs:
                    alias.data = weight.data
                self.replays = None  # CUDA graphs read weights at the addresses of their capture
            self.allocate_sums()
            with self.free_gradient_shard():
                yield
            with phase("reduce"):
                self.deliver()
            for alias in self.aliases if self.sharded else ():
                alias.data = alias.data.new_empty(0)

    @contextmanager
    def free_gradient_shard(self) -> Iterator[None]:
        """Free ZeRO-3's fp32 gradient shard during the step and restore it before the reduction."""
        shard = gradient_shard(self.engine)
        if shard is None:
            yield
            return
        # DeepSpeed holds views of this buffer, so the tensor must stay; only its storage goes. Nothing reads the shard
        # before the reduction, and activations can use the memory.
        storage = shard.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        yield
        storage.resize_(size)
        shard.zero_()  # DeepSpeed also looks for NaN in the padding, which no gradient overwrites

    def allocate_sums(self) -> None:
        """Allocate the gradient accumulation buffers, filled with zeros, in the first step.

        The buffers are always fp32: in bf16, 1,024 equal gradients of 1 sum to 256, because adding 1 to 256 rounds back
        to 256.
        """
        if self.sums:
            return
        # Allocated before any activation: permanent buffers between activations would fragment GPU memory.
        # BF16_Optimizer (stage 1 in bf16) has whole fp32 buffers already. Summing into them saves the 4 bytes per
        # weight, and its step zeroes them.
        existing = fp32_gradient_sums(self.engine)
        self.in_place = bool(existing)
        for weight, alias in self.pairs:
            if alias.requires_grad and self.in_place:
                self.sums[alias] = existing[weight].view_as(alias)
            elif alias.requires_grad:
                self.sums[alias] = torch.zeros_like(alias, dtype=torch.promote_types(alias.dtype, torch.float32))

    def backward(self, scalar: Tensor) -> None:
        """Run one backward pass of a scalar loss outside DeepSpeed's engine; hooks add the weights' gradients to fp32
        sums.

        Args:
            scalar: the loss of one segment, 0-dimensional.
        """
        (scalar * self.scale).backward()

    def add(self, alias: nn.Parameter) -> None:
        """Add a weight's gradient of one backward pass to its fp32 sum and free the gradient; runs as a hook of the
        weight.

        Args:
            alias: the weight, as a parameter of the modules that run forward passes; DeepSpeed's own parameter shares
                its values.
        """
        assert alias.grad is not None
        self.sums[alias].add_(alias.grad)
        alias.grad = None

    def deliver(self) -> None:
        """Pass the accumulated gradients to DeepSpeed's engine, which reduces them over the ranks; zero the buffers."""
        for alias, group in self.tied:
            torch.distributed.all_reduce(self.sums[alias], group=group)
        self.engine.set_gradient_accumulation_boundary(True)
        if self.in_place:
            all_reduce_fp32_sums(self.engine)
            return
        trained = [(weight, self.sums[alias]) for weight, alias in self.pairs if alias.requires_grad]

        def forward() -> Tensor:
            return torch.stack([DeliverGradient.apply(weight, total, self.scale) for weight, total in trained]).sum()

        # The engine must run this function as its forward pass: that is where DeepSpeed gets ready for a backward pass.
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
    rotary frequency left on the host would be copied in every forward pass, and CUDA graphs cannot capture that copy.

    Args:
        model: the model.
        device: the device of the parameters.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


class DeliverGradient(torch.autograd.Function):
    """Autograd function that returns zero and whose backward pass gives a weight a gradient that was computed
    elsewhere."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, total: Tensor, scale: float) -> Tensor:
        ctx.total, ctx.scale, ctx.dtype = total, scale, weight.dtype
        return torch.zeros((), device=weight.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # the engine multiplies its scalar by the loss scale, which the sums contain already
        delivered = (ctx.total * (gradient / ctx.scale)).to(ctx.dtype)
        ctx.total.zero_()
        return delivered, None, None
