"""Host memory for the copies that a background save writes while training continues."""

import torch
from torch import Tensor

BLOCK = 2**30  # bytes; torch rounds page-locked memory up to a power of two


class Staging:
    """Host memory for copies of tensors that are being saved, reused from one save to the next.

    Memory for copies from a GPU is page-locked: copies into it are ten times faster than into newly allocated memory.
    Locking takes as long as a slow copy, but happens only once.
    """

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        self.block = self.used = 0

    def begin(self) -> None:
        """Start a new save, whose copies to host memory overwrite those of earlier saves."""
        self.block = self.used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Start to copy a tensor to host memory, and return the copy, of the same shape and dtype.

        Neither tensor may be used before :meth:`wait` has completed the copy.

        Args:
            tensor: the tensor, on any device.
        """
        source = tensor.detach()
        target = self.allocate(source.numel() * source.element_size(), source.is_cuda).view(source.dtype)
        return target.view(source.shape).copy_(source, non_blocking=True)

    def allocate(self, size: int, locked: bool) -> Tensor:
        """Return ``[size]`` unused bytes of staging memory (uint8), adding a block if existing ones have too few left.

        Args:
            size: number of bytes.
            locked: whether a new block is page-locked, for fast copies from a GPU.
        """
        while self.block < len(self.blocks) and self.used + size > len(self.blocks[self.block]):
            self.block, self.used = self.block + 1, 0
        if self.block == len(self.blocks):
            self.blocks.append(torch.empty(max(size, BLOCK if locked else size), dtype=torch.uint8, pin_memory=locked))
        # multiples of 16 bytes, so that the next copy starts aligned for any dtype
        start, self.used = self.used, self.used + -(-size // 16) * 16
        return self.blocks[self.block][start : start + size]

    def wait(self) -> None:
        """Wait until all copies to host memory that were started are complete."""
        if any(block.is_pinned() for block in self.blocks):
            torch.cuda.current_stream().synchronize()
