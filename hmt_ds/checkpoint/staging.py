"""Copies on the host of what a background save writes, so that training can go on meanwhile."""

import torch
from torch import Tensor

BLOCK = 2**30  # bytes; torch rounds page-locked memory up to a power of two


class Staging:
    """Memory of the host that copies are put into, kept from one save to the next.

    From a GPU it is page-locked: copies run at the speed of the bus, an order of magnitude faster than into new memory
    (to lock it takes as long as a slow copy, once).
    """

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.block = self.used = 0

    def begin(self) -> None:
        """Use all of it anew; earlier copies are not needed any more."""
        self.block = self.used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy that may be read after :meth:`wait`; the original must not change before."""
        source = tensor.detach()
        target = self.room(source.numel() * source.element_size(), source.is_cuda).view(source.dtype)
        return target.view(source.shape).copy_(source, non_blocking=True)

    def room(self, size: int, locked: bool) -> Tensor:
        """So many bytes that nobody else has."""
        while self.block < len(self.blocks) and self.used + size > len(self.blocks[self.block]):
            self.block, self.used = self.block + 1, 0
        if self.block == len(self.blocks):
            self.blocks.append(torch.empty(max(size, BLOCK if locked else size), dtype=torch.uint8, pin_memory=locked))
        start, self.used = self.used, self.used + -(-size // 16) * 16
        return self.blocks[self.block][start : start + size]

    def wait(self) -> None:
        """Until all copies are made."""
        if any(block.is_pinned() for block in self.blocks):
            torch.cuda.current_stream().synchronize()
