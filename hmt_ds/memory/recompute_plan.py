"""How many segments keep their activations for the backward pass of truncated BPTT, and how many are recomputed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RecomputePlan:
    """How many segments keep their activations for the backward pass of truncated BPTT; all others are recomputed.

    Trades memory for speed; gradients are the same.

    Attributes:
        kept_segments: number of segments, counted from the last one, that keep their activations.
        summary_segments: number of segments whose summaries (for retrieval queries) are computed in one batch.
        kept_summaries: number of batches of summaries, counted from the last one, that keep their activations.
    """

    kept_segments: int = 1
    summary_segments: int = 1
    kept_summaries: int = 0

    def backward_passes(self, segments: int, summarised: int) -> int:
        """Return the number of backward passes that truncated BPTT takes.

        Args:
            segments: number of segments that gradients flow through.
            summarised: number of segments that also have a pass for their retrieval query.
        """
        return segments + -(-summarised // self.summary_segments)

    @classmethod
    def keep_all(cls, segments: int) -> "RecomputePlan":
        """Return a plan that keeps the activations of all segments, so that nothing is recomputed.

        Args:
            segments: number of segments.
        """
        return cls(segments, segments, segments)
