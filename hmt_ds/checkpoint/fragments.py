"""Where this rank's part of each trained weight and of its optimizer state lies, at every ZeRO stage.

DeepSpeed keeps float32 weights and optimizer states in flat buffers, of which each rank has its share; it may begin and
end within a weight. This file is all that knows of those buffers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hmt_ds.distributed.deepspeed_internals import (
    base_optimizer,
    full_shape,
    group_of_buffers,
    is_replicated,
    master_buffers,
    optimizer_for,
    optimizer_shard,
)
from hmt_ds.distributed.engine import Engine
from hmt_ds.memory import HMT
from hmt_ds.parallel.deepspeed_config.fill import HOW

WEIGHT = "weight"


@dataclass(frozen=True)
class Fragment:
    """A part of one trained weight, with the same part of its optimizer state.

    Attributes:
        name: the weight's, as the model has it.
        shape: of the whole weight.
        start: where in the flattened weight the part begins.
        tensors: views ``[numel]`` of this rank's own tensors, float32: ``weight``, and each elementwise state by its
            optimizer's name for it (``exp_avg``, ``exp_avg_sq``, ...). Writing into them changes the rank's state.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]

    @property
    def numel(self) -> int:
        """How many numbers the part has."""
        return self.tensors[WEIGHT].numel()


def fragments(engine: Engine[HMT], *, rank: int, world_size: int, to_write: bool) -> Iterator[Fragment]:
    """This rank's fragments.

    Args:
        to_write: where every rank holds all (stage 0), yield this rank's share of it only; together all ranks yield
            every weight once.
    """
    find = of_replicated if engine.zero_optimization_stage() == 0 else of_sharded
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and not (to_write and is_replicated(parameter)):
            yield from find(engine, name, parameter, rank, world_size if to_write else 1)


def of_replicated(engine: Engine[HMT], name: str, weight: Tensor, rank: int, shares: int) -> Iterator[Fragment]:
    """Stage 0: every rank has the whole weight; to write, each takes an equal share of it."""
    size = -(-weight.numel() // shares)
    start = min(weight.numel(), rank * size if shares > 1 else 0)
    if numel := min(size, weight.numel() - start):
        state = base_optimizer(engine).state[weight]
        yield cut(name, full_shape(weight), start, weight.data.view(-1), state, start, numel)


def of_sharded(engine: Engine[HMT], name: str, weight: Tensor, rank: int, shares: int) -> Iterator[Fragment]:
    """Stages 1 to 3: the part of the weight in this rank's flat buffers, if it has one."""
    if found := optimizer_shard(engine, weight, rank):
        state = base_optimizer(engine).state[found.buffer]
        yield cut(name, full_shape(weight), found.start, found.buffer.data, state, found.offset, found.numel)


def cut(
    name: str, shape: tuple[int, ...], start: int, flat: Tensor, state: dict[str, Any], offset: int, numel: int
) -> Fragment:
    """A fragment from flat buffers: of the states, those that have a number for each number of the weight."""
    tensors = {WEIGHT: flat.narrow(0, offset, numel)}
    for key, value in state.items():
        if torch.is_tensor(value) and value.numel() == flat.numel() and value.dim() > 0:
            tensors[key] = value.view(-1).narrow(0, offset, numel)
    return Fragment(name, shape, start, tensors)


def scalars(engine: Engine[HMT]) -> dict[str, Any]:
    """What else the optimizer remembers, the same on all ranks: steps and the numbers of each group of weights."""
    optimizer = base_optimizer(engine)
    groups = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    states = [state for state in optimizer.state.values() if state]
    first = states[0].items() if states else ()
    single = {k: float(v) for k, v in first if v is not None and (not torch.is_tensor(v) or v.dim() == 0)}
    return {"groups": groups, "state": single}


def set_scalars(engine: Engine[HMT], saved: dict[str, Any]) -> None:
    """The inverse of :func:`scalars`, but for how a step is computed, which is this device's, and for the decay of
    weights, which is the recipe's."""
    optimizer = base_optimizer(engine)
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        remembered = {k: v for k, v in values.items() if k not in {*HOW, "weight_decay"}}
        group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in remembered.items()})
    for state in optimizer.state.values():
        for key, value in saved["state"].items():
            if torch.is_tensor(state.get(key)):
                state[key].fill_(value)
            else:
                state[key] = type(state.get(key, value))(value)


def ensure_states(engine: Engine[HMT]) -> None:
    """Make the optimizer's states exist before its first step, as they are then.

    It takes a step on zeros, one buffer after the other, and every weight is put back.
    """
    optimizer = base_optimizer(engine)
    members = [group["params"] for group in optimizer.param_groups]
    for number, flat in buffers(engine):
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


def buffers(engine: Engine[HMT]) -> list[tuple[int, Tensor]]:
    """What the optimizer updates, each with its group's number: the flat buffers, or at stage 0 the weights."""
    if engine.zero_optimization_stage() == 0:
        groups = base_optimizer(engine).param_groups
        return [(number, weight) for number, group in enumerate(groups) for weight in group["params"]]
    return list(zip(group_of_buffers(engine), master_buffers(engine), strict=True))
