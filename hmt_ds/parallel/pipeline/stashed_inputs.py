"""The inputs that a stage keeps from an item's forward to its backward pass, the oldest of them on the host."""

import torch
from torch import Tensor

from hmt_ds.parallel.pipeline.schedule import Item


class StashedInputs:
    """With memory what was put in last is wanted first, so the oldest go to the host when there are too many.

    (Without memory the oldest is wanted first, but then a stage keeps no more than there are stages behind it.)

    Args:
        limit: how many stay on the device; None for all.
        wanted: False where no backward pass comes, and nothing has to be kept.
    """

    def __init__(self, limit: int | None = None, *, wanted: bool = True):
        self.limit, self.wanted = limit, wanted
        self.here: dict[Item, Tensor | None] = {}
        self.on_host: dict[Item, tuple[Tensor, torch.device] | None] = {}

    def put(self, item: Item, given: Tensor | None) -> None:
        """Keep an item's input; None where the stage makes its own."""
        self.here[item] = given
        if self.limit is not None and len(self.here) > self.limit:
            oldest = next(iter(self.here))
            tensor = self.here.pop(oldest)
            self.on_host[oldest] = None if tensor is None else (to_host(tensor), tensor.device)

    def take(self, item: Item) -> Tensor | None:
        """An item's input, which is not kept any longer."""
        if item in self.here:
            return self.here.pop(item)
        there = self.on_host.pop(item)
        return None if there is None else there[0].to(there[1], non_blocking=True)

    def __len__(self) -> int:
        return len(self.here) + len(self.on_host)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in page-locked memory, made while the device goes on."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)
