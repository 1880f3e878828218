"""How many segments of a window keep their activations for the backward pass, and how many are recomputed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RecomputePlan:
    """How many segments of a window keep their activations for the backward pass; all others are recomputed.

    Trades memory for speed; gradients are the same.

    Attributes:
        kept_segments: number of segments, counted from the last one, that keep their activations.
        summary_segments: number of segments whose summaries are computed in one batch.
        kept_summaries: number of batches of summaries, counted from the last one, that keep their activations.
    """

    kept_segments: int = 1
    summary_segments: int = 1
    kept_summaries: int = 0

    def backward_passes(self, segments: int, summarised: int) -> int:
        """Return the number of backward passes of a window.

        Args:
            segments: number of segments.
            summarised: number of segments that have a summary pass.
        """
        return segments + -(-summarised // self.summary_segments)

    @classmethod
    def keep_all(cls, segments: int) -> "RecomputePlan":
        """Return a plan that keeps all activations of a window of ``segments`` segments, so that nothing is
        recomputed."""
        return cls(segments, segments, segments)
