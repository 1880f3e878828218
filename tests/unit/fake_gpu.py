"""A GPU whose memory numbers are made up, and the segment and summary whose graphs take a known number of its bytes."""

from types import SimpleNamespace
from typing import Any

import torch
from tiny import document, make_settings, make_window

DEPTH = 12
SETTINGS = make_settings()
WINDOW = make_window([[document(DEPTH * SETTINGS.segment_length)]])
TOTAL = 100_000
SEGMENT, SUMMARY = 700, 300  # bytes of a graph


class FakeGpu(SimpleNamespace):
    """Fakes the memory numbers of torch.cuda; everything allocated by forward passes stays until the step is over.

    Args:
        behind: bytes that the reduction and the optimizer allocate, after activations are freed.
    """

    def __init__(self, before: int = 10_000, others: int = 0, total: int = TOTAL, behind: int = 0):
        super().__init__(before=before, allocated=before, peak=10**9, others=others, total=total, behind=behind)

    def memory_allocated(self) -> int:
        return self.allocated

    def memory_reserved(self) -> int:
        return self.allocated + 500

    def mem_get_info(self) -> tuple[int, int]:
        return self.total - self.others - self.memory_reserved(), self.total

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak

    def read(self, part: Any, share: float = 1.0) -> str:
        """Allocate a graph permanently, or, without grad, only for a moment."""
        self.allocated += int(share * (SUMMARY if part == WINDOW_SUMMARY else SEGMENT))
        if torch.is_grad_enabled():
            self.peak = max(self.peak, self.allocated)
        return "read"


WINDOW_SUMMARY = WINDOW.summary(0, 1, torch.zeros(1, 2), SETTINGS)
WINDOW_SEGMENT = WINDOW.segment(0, torch.zeros(1, SETTINGS.sensory_tokens, dtype=torch.long), SETTINGS)
