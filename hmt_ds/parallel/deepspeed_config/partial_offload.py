"""An optimizer in two parts: with ``offload_optimizer.ratio`` below 1 DeepSpeed keeps some of its states on the GPU.

It steps on the first of its flat buffers by an AdamW of torch's. The learning rate of that one's first group stays what
it was in the beginning, and nobody saves its states. Here it gets the groups and the states of the optimizer on the
host, which schedules change and checkpoints hold.
"""

from typing import Any

from torch import Tensor


def join_parts(optimizer: Any) -> None:
    """Let both parts have the same groups and states, if there are two.

    Args:
        optimizer: of DeepSpeed's engine.
    """
    on_gpu = getattr(optimizer, "backup_optimizer", None)
    if on_gpu is None:
        return
    on_host = optimizer.optimizer
    for group in on_host.param_groups:
        for key, value in on_gpu.defaults.items():
            group.setdefault(key, value)
        group["decoupled_weight_decay"] = on_host.adam_w_mode
    on_gpu.param_groups, on_gpu.state = on_host.param_groups, on_host.state


def part_for(optimizer: Any, flat: Tensor) -> Any:
    """The part that takes the steps of a flat buffer; or all of it, if there is one only."""
    on_gpu = getattr(optimizer, "backup_optimizer", None)
    return optimizer.optimizer if on_gpu is None or flat.device.type == "cpu" else on_gpu
