"""Views of a rank's part of each trained weight and of its optimizer state, at every ZeRO stage.

DeepSpeed keeps float32 weights and optimizer states in flat buffers; a rank's share of a buffer may start and end
inside a weight. Checkpoints are written and read through fragments (ranges of flattened weights), which look alike at
every stage.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from hmt_ds.distributed.deepspeed_internals import (
    base_optimizer,
    full_numel,
    full_shape,
    group_of_buffers,
    has_optimizer,
    is_replicated,
    master_buffers,
    optimizer_for,
    optimizer_shard,
    weight_shard,
)
from hmt_ds.distributed.engine import Engine
from hmt_ds.memory import HMT
from hmt_ds.parallel.deepspeed_config.fill import ADAM_IMPLEMENTATION

WEIGHT = "weight"


@dataclass(frozen=True)
class Fragment:
    """A range of one flattened weight, with the same range of the weight's optimizer state.

    Attributes:
        name: name of the weight in the model.
        shape: shape of the whole weight.
        start: index in the flattened weight at which the range starts.
        tensors: views ``[numel]`` of this rank's own tensors (float32 where there is an optimizer): ``weight``, and
            each elementwise state by its name in the optimizer (``exp_avg``, ``exp_avg_sq``, ...). Writing into a view
            changes the rank's state.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]

    @property
    def numel(self) -> int:
        """Number of elements of the fragment, which is a range of a flattened weight."""
        return self.tensors[WEIGHT].numel()


class OptimizerScalars(TypedDict):
    """The part of an optimizer's state that is equal on all ranks.

    Attributes:
        groups: settings of each parameter group, such as ``lr`` and ``betas``, without the parameters.
        state: numbers that all parameters share, such as the step counter ``step``, by name.
    """

    groups: list[dict[str, object]]
    state: dict[str, float]


def fragments(engine: Engine[HMT], *, rank: int, world_size: int, to_write: bool) -> Iterator[Fragment]:
    """Yield this rank's part of each trained weight, with its optimizer states.

    Args:
        engine: DeepSpeed's engine.
        rank: index of this rank among the data-parallel ranks.
        world_size: number of data-parallel ranks.
        to_write: at ZeRO stage 0, where every rank holds all weights, yield only this rank's share; then all ranks
            together yield each element exactly once.
    """
    find = of_replicated if engine.zero_optimization_stage() == 0 else of_sharded
    if not has_optimizer(engine):
        find = of_reader
    for name, parameter in engine.module.named_parameters():
        # a weight that is replicated from another pipeline stage is written by that stage
        if parameter.requires_grad and not (to_write and is_replicated(parameter)):
            yield from find(engine, name, parameter, rank, world_size if to_write else 1)


def of_reader(engine: Engine[HMT], name: str, weight: Tensor, rank: int, shares: int) -> Iterator[Fragment]:
    """Yield this rank's part of a weight in an engine without an optimizer: all of it, or at ZeRO-3 the rank's shard.

    Args:
        engine: DeepSpeed's engine; unused.
        name: name of the weight in the model.
        weight: the parameter.
        rank: index of this rank among the data-parallel ranks.
        shares: unused.
    """
    shard = weight_shard(weight)
    if shard is None:
        yield cut(name, full_shape(weight), 0, weight.data.view(-1), {}, 0, weight.numel())
    elif (numel := min(shard.numel(), full_numel(weight) - rank * shard.numel())) > 0:  # the last shards are padded
        yield cut(name, full_shape(weight), rank * shard.numel(), shard.data, {}, 0, numel)


def of_replicated(engine: Engine[HMT], name: str, weight: Tensor, rank: int, shares: int) -> Iterator[Fragment]:
    """Yield this rank's share of a weight that every rank holds whole (ZeRO stage 0), with its optimizer states.

    Args:
        engine: DeepSpeed's engine.
        name: name of the weight in the model.
        weight: the parameter.
        rank: index of this rank among the data-parallel ranks.
        shares: number of equal parts, of which this rank yields one; 1 yields the whole weight on every rank.
    """
    size = -(-weight.numel() // shares)
    start = min(weight.numel(), rank * size if shares > 1 else 0)
    if numel := min(size, weight.numel() - start):
        state = base_optimizer(engine).state[weight]
        yield cut(name, full_shape(weight), start, weight.data.view(-1), state, start, numel)


def of_sharded(engine: Engine[HMT], name: str, weight: Tensor, rank: int, shares: int) -> Iterator[Fragment]:
    """Yield the range of a weight that is in this rank's flat buffers (ZeRO stages 1 to 3); nothing if none is.

    Args:
        engine: DeepSpeed's engine.
        name: name of the weight in the model.
        weight: the parameter.
        rank: index of this rank among the data-parallel ranks.
        shares: unused.
    """
    if found := optimizer_shard(engine, weight, rank):
        state = base_optimizer(engine).state[found.buffer]
        yield cut(name, full_shape(weight), found.start, found.buffer.data, state, found.offset, found.numel)


def cut(
    name: str, shape: tuple[int, ...], start: int, flat: Tensor, state: Mapping[str, object], offset: int, numel: int
) -> Fragment:
    """Make a fragment (a range of one weight with its optimizer states) from a range of the optimizer's flat buffer.

    Args:
        name: name of the weight.
        shape: shape of the whole weight.
        start: index in the flattened weight at which the range starts.
        flat: flat buffer of weights, ``[buffer elements]``.
        state: the optimizer's states of the buffer by name; those of another size are left out.
        offset: index in the buffer at which the range starts.
        numel: number of elements of the range.
    """
    tensors = {WEIGHT: flat.narrow(0, offset, numel)}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.numel() == flat.numel() and value.dim() > 0:
            tensors[key] = value.view(-1).narrow(0, offset, numel)
    return Fragment(name, shape, start, tensors)


def optimizer_scalars(engine: Engine[HMT]) -> OptimizerScalars:
    """Return the optimizer's step counters and settings of parameter groups, which are equal on all ranks.

    Args:
        engine: DeepSpeed's engine.
    """
    optimizer = base_optimizer(engine)
    groups = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    states = [state for state in optimizer.state.values() if state]
    first = states[0].items() if states else ()
    single = {k: float(v) for k, v in first if v is not None and (not torch.is_tensor(v) or v.dim() == 0)}
    return {"groups": groups, "state": single}


def restore_scalars(engine: Engine[HMT], saved: OptimizerScalars) -> None:
    """Restore the optimizer's step counters and settings of parameter groups from a checkpoint.

    Two kinds of settings are not restored: the implementation of a step (fused or not, ...), which depends on the
    device, and the weight decay, which the recipe sets.

    Args:
        engine: DeepSpeed's engine, changed in place.
        saved: counters and settings in the checkpoint.
    """
    optimizer = base_optimizer(engine)
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        for key, value in values.items():
            if key not in {*ADAM_IMPLEMENTATION, "weight_decay"}:
                # JSON has made lists of tuples
                group[key] = tuple(value) if isinstance(value, list) and isinstance(group.get(key), tuple) else value
    for state in optimizer.state.values():
        for key, number in saved["state"].items():
            if torch.is_tensor(state.get(key)):
                state[key].fill_(number)
            else:
                state[key] = type(state.get(key, number))(number)


def create_states(engine: Engine[HMT]) -> None:
    """Create the optimizer's states as they are before its first step, unless they exist already.

    Each optimizer creates its states in its own way in its first step. So the optimizer takes a step with zero
    gradients, for one buffer at a time to save memory, and afterwards every weight gets its old value back.

    Args:
        engine: DeepSpeed's engine, changed in place.
    """
    optimizer = base_optimizer(engine)
    members = [group["params"] for group in optimizer.param_groups]
    for number, flat in optimizer_buffers(engine):
        if optimizer.state.get(flat):
            continue
        for group in optimizer.param_groups:
            group["params"] = []
        optimizer.param_groups[number]["params"] = [flat]
        gradient, value = flat.grad, flat.detach().clone()
        flat.grad = torch.zeros_like(flat)
        optimizer_for(engine, flat).step()
        flat.data.copy_(value)
        flat.grad = gradient
        if "step" in (state := optimizer.state[flat]):
            state["step"] *= 0
    for group, own in zip(optimizer.param_groups, members, strict=True):
        group["params"] = own


def optimizer_buffers(engine: Engine[HMT]) -> list[tuple[int, Tensor]]:
    """Return the tensors that the optimizer updates: flat float32 buffers, or at ZeRO stage 0 the weights themselves.

    Args:
        engine: DeepSpeed's engine.

    Returns:
        Pairs of the index of the parameter group and the tensor.
    """
    if engine.zero_optimization_stage() == 0:
        groups = base_optimizer(engine).param_groups
        return [(number, weight) for number, group in enumerate(groups) for weight in group["params"]]
    return list(zip(group_of_buffers(engine), master_buffers(engine), strict=True))
