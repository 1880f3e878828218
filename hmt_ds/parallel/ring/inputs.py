"""The inputs that a stage keeps from an item's forward to its backward pass: a stack, the older part on the host."""

from collections import deque

import torch
from torch import Tensor


class Inputs:
    """What was put in last is wanted first. So the oldest go to the host when there are too many.

    Args:
        limit: how many stay on the device; None for all.
        wanted: False where no backward pass comes, and nothing has to be kept.
    """

    def __init__(self, limit: int | None = None, *, wanted: bool = True):
        self.limit, self.wanted = limit, wanted
        self.here: deque[Tensor | None] = deque()
        self.on_host: list[tuple[Tensor, torch.device] | None] = []

    def push(self, given: Tensor | None) -> None:
        """Keep an input; None where the stage makes its own."""
        self.here.append(given)
        if self.limit is not None and len(self.here) > self.limit:
            oldest = self.here.popleft()
            self.on_host.append(None if oldest is None else (to_host(oldest), oldest.device))

    def pop(self) -> Tensor | None:
        """The newest one."""
        if self.here:
            return self.here.pop()
        there = self.on_host.pop()
        return None if there is None else there[0].to(there[1], non_blocking=True)

    def __len__(self) -> int:
        return len(self.here) + len(self.on_host)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory, made while the device goes on."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
