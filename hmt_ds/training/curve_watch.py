"""Warn about sudden changes of a run's loss and speed. Each rank watches its own steps; only rank 0 warns."""

from collections import deque
from statistics import median

REMEMBERED, NEEDED = 64, 32  # steps that a loss is compared with: at most, and at least
SPREADS = 8.0  # times the usual deviation by which a loss is a spike
LEAST_RISE, LEAST_SHARE = 0.3, 0.1  # nats, and of the median: less is no spike
RECENT = 16  # steps whose highest loss a spike also exceeds by that much, for losses of two kinds of documents
SPEED_STEPS, WARM_UP = 20, 10  # steps of a median speed; steps that compile and measure
FELL, RECOVERED = 0.7, 0.85  # of the best speed
DEVIATION = 1.4826  # of a normal distribution, in medians of absolute differences


class CurveWatch:
    """Detects loss spikes and drops in training speed, by comparing each step with earlier ones.

    A change of the depth (segments that gradients flow through) changes both, so the comparison then starts over.

    Attributes:
        losses: losses of the last steps, in nats per label.
        speeds: tokens/s per rank of the last steps.
        best: best median of tokens/s per rank so far; 0 before the first one.
        slow: whether the speed has dropped and not recovered.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.start_over(0)

    def start_over(self, depth: int) -> None:
        """Forget the losses and speeds of earlier steps, because the depth (segments that gradients flow through) has
        changed.

        Args:
            depth: the new number of segments.
        """
        self.depth, self.steps, self.quiet = depth, 0, 0
        self.losses: deque[float] = deque(maxlen=REMEMBERED)
        self.speeds: deque[float] = deque(maxlen=SPEED_STEPS)
        self.best, self.slow = 0.0, False

    def step(self, loss: float | None, speed: float, depth: int) -> list[str]:
        """Record a step, and look for a loss spike and a drop in speed.

        Args:
            loss: nats per label; None for a step without labels or with a loss that is not finite.
            speed: tokens/s per rank.
            depth: largest number of segments that gradients flow through at this step.

        Returns:
            A line for the user for each sudden change; an empty list if there is none.
        """
        if depth != self.depth:
            self.start_over(depth)
        self.steps += 1
        found = [self.spike(loss) if loss is not None else None, self.fall(speed)]
        return [line for line in found if line]

    def spike(self, loss: float) -> str | None:
        """Return a warning line if a loss is far above those of earlier steps; None otherwise, and for spikes soon
        after one.

        Args:
            loss: nats per label.
        """
        before = list(self.losses)
        self.losses.append(loss)
        self.quiet = max(0, self.quiet - 1)
        if len(before) < NEEDED or self.quiet:
            return None
        middle = median(before)
        usual = DEVIATION * median(abs(one - middle) for one in before)
        least = max(LEAST_RISE, LEAST_SHARE * middle)
        if loss - middle <= max(SPREADS * usual, least) or loss - max(before[-RECENT:]) <= least:
            return None
        self.quiet = REMEMBERED
        return (
            f"loss spike: {loss:.3f}, where the {len(before)} steps before had {min(before):.3f} to {max(before):.3f} "
            f"(median {middle:.3f}); lower optimizer.lr or training.gradient_clipping if it does not come back"
        )

    def fall(self, speed: float) -> str | None:
        """Return a line for the user if the training speed has dropped far below the best so far, or has recovered;
        else None.

        Args:
            speed: tokens/s per rank.
        """
        if self.steps <= WARM_UP:
            return None
        self.speeds.append(speed)
        if len(self.speeds) < SPEED_STEPS:
            return None
        now = median(self.speeds)
        self.best = max(self.best, now)
        if not self.slow and now < FELL * self.best:
            self.slow = True
            return (
                f"the speed has fallen: {now:,.0f} tokens/s per rank in the last {SPEED_STEPS} steps, {self.best:,.0f} "
                "before; see slowest_rank in metrics.jsonl, hmt-ds status, and what else runs on the machines"
            )
        if self.slow and now > RECOVERED * self.best:
            self.slow = False
            return f"the speed is back: {now:,.0f} tokens/s per rank, {self.best:,.0f} at best"
        return None
