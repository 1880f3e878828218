"""Stash stage inputs from each forward pass to its backward pass, with the oldest offloaded to the host."""

import torch
from torch import Tensor

from hmt_ds.parallel.pipeline.schedule import Action


class StashedInputs:
    """Keeps a pipeline stage's inputs from each forward pass to its backward pass, which recomputes from them.

    With memory the newest input is needed first, so inputs beyond the limit, the oldest ones, are offloaded to the
    host. (Without memory the oldest is needed first, but then only few inputs are kept.)

    Args:
        limit: number of inputs that stay on the device; None for all.
        enabled: False for evaluation, where no backward pass follows and nothing is kept.
    """

    def __init__(self, limit: int | None = None, *, enabled: bool = True):
        self.limit, self.enabled = limit, enabled
        self.on_device: dict[Action, Tensor | None] = {}
        self.on_host: dict[Action, tuple[Tensor, torch.device] | None] = {}

    def put(self, action: Action, stage_input: Tensor | None) -> None:
        """Keep the input of a pipeline stage's forward pass until the backward pass.

        Args:
            action: the forward pass.
            stage_input: the input, ``[rows, positions, hidden size]``; None if the stage embeds tokens and has no other
                input.
        """
        self.on_device[action] = stage_input
        if self.limit is not None and len(self.on_device) > self.limit:
            oldest = next(iter(self.on_device))
            tensor = self.on_device.pop(oldest)
            self.on_host[oldest] = None if tensor is None else (to_host(tensor), tensor.device)

    def take(self, action: Action) -> Tensor | None:
        """Remove the kept input of a forward pass, and return it on the device; None if the pass had no input to keep.

        Args:
            action: the forward pass.

        Returns:
            ``[rows, positions, hidden size]`` or None.
        """
        if action in self.on_device:
            return self.on_device.pop(action)
        offloaded = self.on_host.pop(action)
        return None if offloaded is None else offloaded[0].to(offloaded[1], non_blocking=True)

    def __len__(self) -> int:
        return len(self.on_device) + len(self.on_host)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a device tensor to pinned host memory without blocking the host.

    Args:
        tensor: the tensor, of any shape.
    """
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
