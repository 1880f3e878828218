"""What is kept of a window between its two passes, and what is read again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RecomputePlan:
    """How memory is spent on speed. Gradients do not depend on it.

    Attributes:
        kept_segments: how many segments keep their activations, from the last one backwards: they are read once.
        summary_segments: how many segments' summaries are read in one batch.
        kept_summaries: how many of these batches keep their activations, from the last one backwards.
    """

    kept_segments: int = 1
    summary_segments: int = 1
    kept_summaries: int = 0

    def backward_passes(self, segments: int, summarised: int) -> int:
        """How many a window of so many segments takes, of which so many have a summary."""
        return segments + -(-summarised // self.summary_segments)

    @classmethod
    def keep_all(cls, segments: int) -> "RecomputePlan":
        """Nothing is read twice."""
        return cls(segments, segments, segments)
