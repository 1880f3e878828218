"""Access to the undocumented parts of DeepSpeed that this project uses, each behind a small function.

Other files use engine.py and these functions, so a new DeepSpeed version needs checking here alone:
tests/unit/test_deepspeed_internals.py looks for every name in the installed version.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import deepspeed
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from hmt_ds.distributed.engine import Engine, Model

COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
GRADIENT_SHARD = "grad_partitions_flat_buffer"
GRADIENT_TENSORS = (
    "averaged_gradients",
    "all_grad_tensors",
    GRADIENT_SHARD,
    "ipg_buckets",
    "fp32_groups_gradients_flat",
)


def untyped(thing: object) -> Any:
    """Return an object typed as Any, to access private attributes that its declared type lacks."""
    return thing


def skip_shared_memory_kernel() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce for CPU ranks.

    Compiling takes minutes at the first start, and a compilation that was killed leaves a lock on which later starts
    hang.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


# ---- optimizer steps ----


def has_optimizer(engine: Engine[Model]) -> bool:
    """Whether a DeepSpeed engine has an optimizer, as for training; evaluation builds engines without one."""
    return untyped(engine).basic_optimizer is not None


def base_optimizer(engine: Engine[Model]) -> Optimizer:
    """The torch optimizer (or DeepSpeed's replacement, such as FusedAdam) that a DeepSpeed engine's ZeRO optimizer
    wraps."""
    optimizer = untyped(engine).optimizer
    return optimizer if engine.zero_optimization_stage() == 0 else optimizer.optimizer


def skip_steps_on_overflow(engine: Engine[Model]) -> None:
    """Make a ZeRO stage-0 engine skip optimizer steps whose gradients are not finite, as DeepSpeed's ZeRO optimizers
    do.

    The engine reads ``optimizer.overflow`` after a step: if true, it counts a skipped step and does not advance the
    schedule. A torch optimizer without gradients changes nothing, so dropping the gradients skips the step.
    """
    if engine.zero_optimization_stage() > 0:
        return

    def drop_gradients(optimizer: Optimizer, *_: object) -> None:
        if untyped(optimizer).overflow:
            optimizer.zero_grad()

    set_overflow(engine, False)
    base_optimizer(engine).register_step_pre_hook(drop_gradients)


def set_overflow(engine: Engine[Model], overflow: bool) -> None:
    """Tell a ZeRO stage-0 engine whether the gradients of the coming step are non-finite, so that it skips the step.

    Args:
        engine: an engine prepared by :func:`skip_steps_on_overflow`.
        overflow: whether a gradient is inf or nan.
    """
    untyped(engine).optimizer.overflow = overflow


def skipped_steps(engine: Engine[Model]) -> int:
    """Return how many optimizer steps a DeepSpeed engine has skipped so far because gradients were not finite."""
    return untyped(engine).skipped_steps


def loss_scale(engine: Engine[Model]) -> float:
    """The factor by which a DeepSpeed engine multiplies losses before the backward pass: 1 except in fp16."""
    if scaler := untyped(engine).torch_autocast_z0_gradscaler:
        return float(scaler.get_scale())
    return float(getattr(untyped(engine).optimizer, "loss_scale", 1.0) or 1.0)


def counters(engine: Engine[Model]) -> dict[str, int]:
    """Return a DeepSpeed engine's counters of steps and samples by attribute name, to save in a checkpoint."""
    return {name: getattr(engine, name) for name in COUNTERS}


def set_counters(engine: Engine[Model], saved: dict[str, int]) -> None:
    """Set a DeepSpeed engine's counters of steps and samples to those of a checkpoint.

    Args:
        engine: the engine.
        saved: the counters by attribute name, as :func:`counters` returned them.
    """
    for name in COUNTERS:
        setattr(engine, name, saved[name])


def loss_scaler_state(engine: Engine[Model]) -> dict[str, float]:
    """Return a DeepSpeed engine's fp16 loss scaler's attributes by name, to save in a checkpoint; empty if not
    in fp16."""
    if scaler := untyped(engine).torch_autocast_z0_gradscaler:
        return scaler.state_dict()
    scaler = getattr(untyped(engine).optimizer, "loss_scaler", None)
    return {k: v for k, v in vars(scaler).items() if isinstance(v, int | float)} if scaler is not None else {}


def set_loss_scaler_state(engine: Engine[Model], saved: dict[str, float]) -> None:
    """Set a DeepSpeed engine's fp16 loss scaler to the state in a checkpoint; does nothing if that was saved without
    fp16.

    Args:
        engine: the engine.
        saved: the scaler's attributes by name, as :func:`loss_scaler_state` returned them.
    """
    if scaler := untyped(engine).torch_autocast_z0_gradscaler:
        if saved:
            scaler.load_state_dict(saved)
    elif (own := loss_scaler_state(engine)) and own.keys() == saved.keys():
        vars(untyped(engine).optimizer.loss_scaler).update(saved)


# ---- gradients ----


def start_backward(engine: Engine[Model]) -> None:
    """Prepare a DeepSpeed engine for a backward pass that does not follow a forward pass through the engine.

    DeepSpeed prepares itself in the engine's forward pass. When several backward passes follow each other, ZeRO-3 would
    without this call take the second for a part of the first and drop the first's gradients.
    """
    if clear := getattr(untyped(engine).optimizer, "clear_backward_seen_flag", None):
        clear()


def gradient_shard(engine: Engine[Model]) -> Tensor | None:
    """Return ZeRO-3's flat buffer with this rank's shard of the gradients, ``[shard elements]``.

    None at other ZeRO stages, and with an offloaded optimizer, because the buffer is then page-locked host memory.
    """
    optimizer = untyped(engine).optimizer
    return None if getattr(optimizer, "offload_optimizer", False) else getattr(optimizer, GRADIENT_SHARD, None)


def fp32_gradient_sums(engine: Engine[Model]) -> dict[nn.Parameter, Tensor]:
    """Return each weight's unsharded fp32 gradient buffer, ``[elements of the weight]``, at ZeRO stage 1 in bf16; else
    empty.

    The optimizer's step zeroes the buffers.
    """
    optimizer = untyped(engine).optimizer
    if not isinstance(optimizer, BF16_Optimizer):
        return {}
    groups = zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True)
    return {weight: total for weights, sums in groups for weight, total in zip(weights, sums, strict=True)}


def all_reduce_fp32_sums(engine: Engine[Model]) -> None:
    """All-reduce a DeepSpeed engine's unsharded fp32 gradient buffers in place, on all ranks together.

    Only ZeRO stage 1 in bf16 has such buffers.
    """
    optimizer = untyped(engine).optimizer
    # the optimizer ignores sums that its own hooks have not filled
    optimizer.fp32_groups_has_gradients = [[True] * len(group) for group in optimizer.bf16_groups]
    # DeepSpeed all-reduces in communication_data_type, by default bf16, which rounds the sums. On one rank there is
    # nothing to reduce, so they stay fp32.
    if untyped(engine).dp_world_size > 1:
        untyped(engine).allreduce_gradients()


def gradient_tensors(engine: Engine[Model]) -> list[object]:
    """Return all buffers in which DeepSpeed's optimizer keeps gradients, nested in containers, to measure
    their size."""
    return [getattr(untyped(engine).optimizer, name, None) for name in GRADIENT_TENSORS]


# ---- weights ----


def full_numel(weight: Tensor) -> int:
    """The number of elements of a whole weight, also if ZeRO-3 shards it and ``weight.numel()`` is 0, or if
    bitsandbytes has packed it."""
    if packed := getattr(weight, "quant_state", None):
        return math.prod(packed.shape)
    return getattr(weight, "ds_numel", weight.numel())


def full_shape(weight: Tensor) -> tuple[int, ...]:
    """The shape of a whole weight, also if ZeRO-3 shards it."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def weight_shard(weight: Tensor) -> Tensor | None:
    """This rank's shard of a weight that ZeRO-3 shards, ``[shard elements]``; None for a weight that is not sharded."""
    return getattr(weight, "ds_tensor", None)


def is_replicated(weight: Tensor) -> bool:
    """Whether a weight is a copy of another pipeline stage's weight, which only that stage saves and counts
    in norms."""
    return getattr(weight, "ds_pipe_replicated", False)


def mark_replicated(weight: Tensor, replicated: bool = True) -> None:
    """Mark a weight as a copy of another pipeline stage's, so that DeepSpeed leaves it out of gradient norms.

    Args:
        weight: the weight.
        replicated: False to remove the mark.
    """
    untyped(weight).ds_pipe_replicated = replicated


def mark_leaf(module: nn.Module) -> None:
    """Let ZeRO-3 gather all weights of one module at once.

    DeepSpeed's own ``set_z3_leaf_modules`` would mark all modules of a class.
    """
    untyped(module)._z3_leaf = True


def gather_function(engine: Engine[Model]) -> Callable[[set[nn.Parameter], bool], None]:
    """Return ZeRO-3's function ``f(weights, forward)`` that starts to all-gather a set of weights.

    ``forward`` is True for the forward and False for the backward pass. The function skips weights that are already
    gathered; a module that needs the weights waits for them.

    Args:
        engine: the engine, at ZeRO-3.
    """
    coordinator = untyped(engine).optimizer.parameter_offload.get_param_coordinator()
    return coordinator._PartitionedParameterCoordinator__all_gather_params


class OptimizerShard(NamedTuple):
    """This rank's part of a trained weight, in the optimizer's flat fp32 buffers (ZeRO 1 to 3).

    Attributes:
        start: index in the flattened weight at which the part starts.
        numel: number of elements of the part.
        buffer: the flat buffer ``[buffer elements]``, which is also the key of the optimizer's state.
        offset: index in the buffer at which the part starts.
    """

    start: int
    numel: int
    buffer: Tensor
    offset: int


def optimizer_shard(engine: Engine[Model], weight: Tensor, rank: int) -> OptimizerShard | None:
    """Return where a rank's part of a weight is in the optimizer's flat fp32 buffers; None if the rank has no part.

    Args:
        engine: an engine of ZeRO stage 1 to 3.
        weight: a trained parameter.
        rank: index of this rank among the data-parallel ranks.
    """
    optimizer = untyped(engine).optimizer
    if engine.zero_optimization_stage() == 3:  # every weight is cut into equal parts, the last ones padded
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(weight)]
        here = min(size, full_numel(weight) - rank * size)
        buffer = optimizer.fp32_partitioned_groups_flat[group]
        return OptimizerShard(rank * size, here, buffer, offset) if here > 0 else None
    mapping = untyped(weight)._hp_mapping  # "hp" is the high-precision copy, "lp" the weight that computes
    if mapping is None:
        return None
    own, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    return OptimizerShard(whole.start, own.numel, master_buffers(engine)[mapping.param_group_index], own.start)


def master_buffers(engine: Engine[Model]) -> list[Tensor]:
    """This rank's flat fp32 buffers of master weights, which a DeepSpeed engine's optimizer updates (ZeRO 1 to 3)."""
    optimizer = untyped(engine).optimizer
    names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
    return next((list(found) for name in names if (found := getattr(optimizer, name, None))), [])


def group_of_buffers(engine: Engine[Model]) -> list[int]:
    """Return the index of the parameter group of each of the optimizer's flat fp32 buffers.

    ZeRO-3 can have several buffers per group.
    """
    number = range(len(master_buffers(engine)))
    to_group = untyped(engine).optimizer.sub_group_to_group_id if engine.zero_optimization_stage() == 3 else number
    return [to_group[n] for n in number]


def refresh_weights(engine: Engine[Model]) -> None:
    """Copy changed fp32 master weights of a DeepSpeed engine into the weights that forward passes use.

    An engine without an optimizer has no master weights: there ZeRO-3's shards are copied.
    """
    optimizer, stage = untyped(engine).optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    if stage < 3:
        return
    if has_optimizer(engine):
        flats = optimizer.fp16_partitioned_groups_flat
        for low, full in zip(flats, optimizer.fp32_partitioned_groups_flat, strict=True):
            low.data.copy_(full.data)
        for flat, parts in zip(flats, optimizer.fp16_partitioned_groups, strict=True):
            for part, new in zip(parts, optimizer.unflatten(flat, parts), strict=True):
                part.data = new.data
    if persistent := optimizer.persistent_parameters:
        # small weights stay whole on every rank: nothing gathers them before the next forward pass
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)


# ---- an optimizer of which a part is offloaded ----


def join_offloaded_parts(engine: Engine[Model]) -> None:
    """Share parameter groups and states between the GPU's and the host's optimizer, for a partly offloaded optimizer.

    With ``offload_optimizer.ratio`` below 1, DeepSpeed updates its first flat buffers with a torch AdamW on the GPU,
    whose first group keeps the initial learning rate, and whose states no checkpoint contains. So the GPU optimizer
    gets the parameter groups and states of the host's optimizer.

    Args:
        engine: the engine, changed in place.
    """
    on_gpu = getattr(untyped(engine).optimizer, "backup_optimizer", None)
    if on_gpu is None:
        return
    on_host = untyped(engine).optimizer.optimizer
    for group in on_host.param_groups:
        for key, value in on_gpu.defaults.items():
            group.setdefault(key, value)
        group["decoupled_weight_decay"] = on_host.adam_w_mode
    on_gpu.param_groups, on_gpu.state = on_host.param_groups, on_host.state


def optimizer_for(engine: Engine[Model], buffer: Tensor) -> Optimizer:
    """Return the torch optimizer that updates a flat buffer; with a partly offloaded optimizer, the GPU's or the
    host's.

    Args:
        engine: the engine.
        buffer: one of the optimizer's flat fp32 buffers.
    """
    on_gpu = getattr(untyped(engine).optimizer, "backup_optimizer", None)
    return base_optimizer(engine) if on_gpu is None or buffer.device.type == "cpu" else on_gpu
