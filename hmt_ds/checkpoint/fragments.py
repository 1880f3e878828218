"""Where this rank's part of each trained weight and of its optimizer state lies, at every ZeRO stage.

DeepSpeed keeps float32 weights and optimizer states in flat buffers, of which each rank has its share; it may begin and
end within a weight. This file is all that knows of those buffers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hmt_ds.parallel.deepspeed_config.fill import HOW
from hmt_ds.parallel.deepspeed_config.partial_offload import part_for

WEIGHT = "weight"
REPLICATED = "ds_pipe_replicated"  # DeepSpeed's mark on a weight that another stage has too


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


def fragments(engine: Any, *, rank: int, world_size: int, to_write: bool) -> Iterator[Fragment]:
    """This rank's fragments.

    Args:
        to_write: where every rank holds all (stage 0), yield this rank's share of it only; together all ranks yield
            every weight once.
    """
    find = {0: at_stage_0, 3: at_stage_3}.get(engine.zero_optimization_stage(), at_stages_1_and_2)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and not (to_write and getattr(parameter, REPLICATED, False)):
            yield from find(engine, name, parameter, rank, world_size if to_write else 1)


def at_stage_0(engine: Any, name: str, parameter: Any, rank: int, shares: int) -> Iterator[Fragment]:
    """Every rank has everything; to write, each takes an equal share of each weight."""
    size = -(-parameter.numel() // shares)
    start = min(parameter.numel(), rank * size if shares > 1 else 0)
    numel = min(size, parameter.numel() - start)
    if numel:
        state = engine.optimizer.state[parameter]
        yield cut(name, tuple(parameter.shape), start, parameter.data.view(-1), state, start, numel)


def at_stages_1_and_2(engine: Any, name: str, parameter: Any, rank: int, shares: int) -> Iterator[Fragment]:
    """DeepSpeed has noted which part of a weight is this rank's, or that none is."""
    found = parameter._hp_mapping
    if found is None:
        return
    optimizer = engine.optimizer
    flat = flats_of(optimizer)[found.param_group_index]
    here, there = found.hp_fragment_address, found.lp_fragment_address
    state = optimizer.optimizer.state[flat]
    yield cut(name, tuple(parameter.shape), there.start, flat.data, state, here.start, here.numel)


def at_stage_3(engine: Any, name: str, parameter: Any, rank: int, shares: int) -> Iterator[Fragment]:
    """Each weight is cut into equal parts, the last ones padded."""
    optimizer = engine.optimizer
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = rank * size
    numel = min(size, parameter.ds_numel - start)
    if numel > 0:
        flat = optimizer.fp32_partitioned_groups_flat[group]
        state = optimizer.optimizer.state[flat]
        yield cut(name, tuple(parameter.ds_shape), start, flat.data, state, offset, numel)


def cut(
    name: str, shape: tuple[int, ...], start: int, flat: Tensor, state: dict[str, Any], offset: int, numel: int
) -> Fragment:
    """A fragment from flat buffers: of the states, those that have a number for each number of the weight."""
    tensors = {WEIGHT: flat.narrow(0, offset, numel)}
    for key, value in state.items():
        if torch.is_tensor(value) and value.numel() == flat.numel() and value.dim() > 0:
            tensors[key] = value.view(-1).narrow(0, offset, numel)
    return Fragment(name, shape, start, tensors)


def scalars(engine: Any) -> dict[str, Any]:
    """What else the optimizer remembers, the same on all ranks: steps and the numbers of each group of weights."""
    optimizer = base_optimizer(engine)
    groups = [{key: value for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    states = [state for state in optimizer.state.values() if state]
    first = states[0].items() if states else ()
    single = {k: float(v) for k, v in first if v is not None and (not torch.is_tensor(v) or v.dim() == 0)}
    return {"groups": groups, "state": single}


def set_scalars(engine: Any, saved: dict[str, Any]) -> None:
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


def base_optimizer(engine: Any) -> Any:
    """torch's optimizer, or what stands for it, inside of DeepSpeed's."""
    return engine.optimizer if engine.zero_optimization_stage() == 0 else engine.optimizer.optimizer


def ensure_states(engine: Any) -> None:
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
        (optimizer if engine.zero_optimization_stage() == 0 else part_for(engine.optimizer, flat)).step()
        flat.data.copy_(value)
        flat.grad = gradient
        if "step" in (state := optimizer.state[flat]):
            state["step"] *= 0
    for group, own in zip(optimizer.param_groups, members, strict=True):
        group["params"] = own


def buffers(engine: Any) -> list[tuple[int, Tensor]]:
    """What the optimizer steps on, with its group's number: this rank's flat buffers, or at stage 0 the weights."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return [(number, w) for number, group in enumerate(optimizer.param_groups) for w in group["params"]]
    if stage == 3:
        flats = optimizer.fp32_partitioned_groups_flat
        return [(optimizer.sub_group_to_group_id[number], flat) for number, flat in enumerate(flats)]
    return list(enumerate(flats_of(optimizer)))


def flats_of(optimizer: Any) -> list[Tensor]:
    """The float32 buffers of stages 1 and 2, one for each group of weights."""
    return getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition


def spread_weights(engine: Any) -> None:
    """Let the weights that compute follow the float32 ones."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    if stage == 3:
        for low, full in zip(
            optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
        ):
            low.data.copy_(full.data)
        for flat, parts in zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups, strict=True):
            for part, new in zip(parts, optimizer.unflatten(flat, parts), strict=True):
                part.data = new.data
        if optimizer.persistent_parameters:
            # small weights stand whole on every rank, and are not gathered before they are read
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
