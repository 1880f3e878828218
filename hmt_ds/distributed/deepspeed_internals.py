"""What this project uses of DeepSpeed beyond its documented interface.

Other files use engine.py and the functions below. A new DeepSpeed version is checked here alone:
tests/unit/test_deepspeed_internals.py looks for every name in the installed version.
"""

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
    """Return an object without its type, to reach private attributes that the type does not declare."""
    return thing


def skip_shared_memory_kernel() -> None:
    """Keep DeepSpeed from building its shared-memory all-reduce for CPU ranks.

    The build takes minutes at the first start, and a killed build leaves a lock behind which every later start hangs.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


# ---- optimizer steps ----


def has_optimizer(engine: Engine[Model]) -> bool:
    """Whether an engine trains, rather than only reads (``build_reading_engine``)."""
    return untyped(engine).basic_optimizer is not None


def base_optimizer(engine: Engine[Model]) -> Optimizer:
    """The torch optimizer (or DeepSpeed's replacement for it) that ZeRO's optimizer wraps."""
    optimizer = untyped(engine).optimizer
    return optimizer if engine.zero_optimization_stage() == 0 else optimizer.optimizer


def skip_steps_on_overflow(engine: Engine[Model]) -> None:
    """Let stage 0 skip steps whose gradients are not finite, as DeepSpeed's own optimizers of the other stages do.

    The engine reads ``optimizer.overflow`` after a step: where it is true it counts a skipped step and does not advance
    the schedule. A torch optimizer without gradients changes nothing, so dropping them skips the step.
    """
    if engine.zero_optimization_stage() > 0:
        return

    def drop_gradients(optimizer: Optimizer, *_: object) -> None:
        if untyped(optimizer).overflow:
            optimizer.zero_grad()

    set_overflow(engine, False)
    base_optimizer(engine).register_step_pre_hook(drop_gradients)


def set_overflow(engine: Engine[Model], overflow: bool) -> None:
    """Tell a stage-0 engine whether the gradients of the coming step are not finite."""
    untyped(engine).optimizer.overflow = overflow


def skipped_steps(engine: Engine[Model]) -> int:
    """The number of optimizer steps skipped so far."""
    return untyped(engine).skipped_steps


def loss_scale(engine: Engine[Model]) -> float:
    """The factor by which the engine multiplies losses (1 unless fp16)."""
    if scaler := untyped(engine).torch_autocast_z0_gradscaler:
        return float(scaler.get_scale())
    return float(getattr(untyped(engine).optimizer, "loss_scale", 1.0) or 1.0)


def counters(engine: Engine[Model]) -> dict[str, int]:
    """The engine's counters of steps and samples, for checkpoints."""
    return {name: getattr(engine, name) for name in COUNTERS}


def set_counters(engine: Engine[Model], saved: dict[str, int]) -> None:
    """Set the engine's counters to saved values of :func:`counters`."""
    for name in COUNTERS:
        setattr(engine, name, saved[name])


def loss_scaler_state(engine: Engine[Model]) -> dict[str, float]:
    """The numbers of the fp16 loss scaler; empty without one."""
    if scaler := untyped(engine).torch_autocast_z0_gradscaler:
        return scaler.state_dict()
    scaler = getattr(untyped(engine).optimizer, "loss_scaler", None)
    return {k: v for k, v in vars(scaler).items() if isinstance(v, int | float)} if scaler is not None else {}


def set_loss_scaler_state(engine: Engine[Model], saved: dict[str, float]) -> None:
    """Set the fp16 loss scaler to a saved state, unless a run of another precision saved it."""
    if scaler := untyped(engine).torch_autocast_z0_gradscaler:
        if saved:
            scaler.load_state_dict(saved)
    elif (own := loss_scaler_state(engine)) and own.keys() == saved.keys():
        vars(untyped(engine).optimizer.loss_scaler).update(saved)


# ---- gradients ----


def start_backward(engine: Engine[Model]) -> None:
    """Start a backward pass that no forward pass through the engine precedes.

    DeepSpeed does this in the engine's forward pass. When segments keep their graphs, several backward passes follow
    each other; without this call stage 3 takes the second for a part of the first and drops the first's gradients.
    """
    if clear := getattr(untyped(engine).optimizer, "clear_backward_seen_flag", None):
        clear()


def gradient_shard(engine: Engine[Model]) -> Tensor | None:
    """ZeRO-3's flat buffer with this rank's shard of the gradients; None at other stages.

    None too where the optimizer is offloaded: the buffer is then page-locked memory of the host.
    """
    optimizer = untyped(engine).optimizer
    return None if getattr(optimizer, "offload_optimizer", False) else getattr(optimizer, GRADIENT_SHARD, None)


def fp32_gradient_sums(engine: Engine[Model]) -> dict[nn.Parameter, Tensor]:
    """The whole flat fp32 gradient buffer of each weight, where DeepSpeed keeps such buffers (stage 1 in bf16).

    The optimizer's step zeroes them.
    """
    optimizer = untyped(engine).optimizer
    if not isinstance(optimizer, BF16_Optimizer):
        return {}
    groups = zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True)
    return {weight: total for weights, sums in groups for weight, total in zip(weights, sums, strict=True)}


def all_reduce_fp32_sums(engine: Engine[Model]) -> None:
    """All-reduce :func:`fp32_gradient_sums` in place."""
    optimizer = untyped(engine).optimizer
    # the optimizer ignores sums that its own hooks have not filled
    optimizer.fp32_groups_has_gradients = [[True] * len(group) for group in optimizer.bf16_groups]
    # DeepSpeed all-reduces in communication_data_type, by default bf16, which rounds the sums. On one rank there is
    # nothing to reduce, so they stay fp32.
    if untyped(engine).dp_world_size > 1:
        untyped(engine).allreduce_gradients()


def gradient_tensors(engine: Engine[Model]) -> list[object]:
    """Every buffer (nested) in which an optimizer of DeepSpeed keeps gradients, to count its memory."""
    return [getattr(untyped(engine).optimizer, name, None) for name in GRADIENT_TENSORS]


# ---- weights ----


def full_numel(weight: Tensor) -> int:
    """The number of elements of a weight, sharded (where ``weight.numel()`` is 0) or not."""
    return getattr(weight, "ds_numel", weight.numel())


def full_shape(weight: Tensor) -> tuple[int, ...]:
    """The shape of the whole weight, sharded or not."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def weight_shard(weight: Tensor) -> Tensor | None:
    """This rank's shard of a ZeRO-3 weight; None for a weight that is whole."""
    return getattr(weight, "ds_tensor", None)


def is_replicated(weight: Tensor) -> bool:
    """Whether another pipeline stage holds the original of a weight, counts it in norms and saves it."""
    return getattr(weight, "ds_pipe_replicated", False)


def mark_replicated(weight: Tensor, replicated: bool = True) -> None:
    """Exclude a copy of another pipeline stage's weight from DeepSpeed's gradient norm."""
    untyped(weight).ds_pipe_replicated = replicated


def mark_leaf(module: nn.Module) -> None:
    """Let ZeRO-3 gather a module's weights at once (``set_z3_leaf_modules`` does so for all modules of a class)."""
    untyped(module)._z3_leaf = True


def gather_function(engine: Engine[Model]) -> Callable[[set[nn.Parameter], bool], None]:
    """ZeRO-3's function that starts all-gathers of weights, for the forward (True) or the backward pass (False).

    It skips weights that are there already; a module that needs the weights waits for them.
    """
    coordinator = untyped(engine).optimizer.parameter_offload.get_param_coordinator()
    return coordinator._PartitionedParameterCoordinator__all_gather_params


class OptimizerShard(NamedTuple):
    """This rank's part of a trained weight, in the optimizer's flat fp32 buffers (ZeRO 1 to 3).

    Attributes:
        start: of the part in the flattened weight.
        numel: of the part.
        buffer: the flat buffer, which is also the key of the optimizer's state.
        offset: of the part in the buffer.
    """

    start: int
    numel: int
    buffer: Tensor
    offset: int


def optimizer_shard(engine: Engine[Model], weight: Tensor, rank: int) -> OptimizerShard | None:
    """Where a rank's part of a weight is; None if it has none."""
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
    """This rank's flat fp32 buffers of weights (ZeRO 1 to 3): what the optimizer updates."""
    optimizer = untyped(engine).optimizer
    names = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
    return next((list(found) for name in names if (found := getattr(optimizer, name, None))), [])


def group_of_buffers(engine: Engine[Model]) -> list[int]:
    """The parameter group of each of :func:`master_buffers`. Stage 3 cuts a group into several buffers."""
    number = range(len(master_buffers(engine)))
    to_group = untyped(engine).optimizer.sub_group_to_group_id if engine.zero_optimization_stage() == 3 else number
    return [to_group[n] for n in number]


def refresh_weights(engine: Engine[Model]) -> None:
    """Copy changed fp32 master weights (without an optimizer: shards) into the compute weights."""
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
    """Share parameter groups and states between the two optimizers of ``offload_optimizer.ratio`` below 1.

    DeepSpeed then updates its first flat buffers with a torch AdamW on the GPU, whose first group keeps the learning
    rate it began with, and whose states no checkpoint sees. So the GPU optimizer is given the host optimizer's groups
    and states.
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
    """The optimizer that updates a flat buffer: with a part offloaded, the one on the buffer's device."""
    on_gpu = getattr(untyped(engine).optimizer, "backup_optimizer", None)
    return base_optimizer(engine) if on_gpu is None or buffer.device.type == "cpu" else on_gpu
