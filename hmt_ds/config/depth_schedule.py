"""The depth of truncated BPTT (segments per window) by optimizer step: constant, rising at given steps, or random."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from hmt_ds.config.value_checks import check_digits


@dataclass(frozen=True)
class DepthSchedule:
    """The number of segments per window in each optimizer step. Steps are numbered from 1.

    Attributes:
        stages: depth in segments by the number of steps taken before it applies: {0: 2, 200: 4} is 2 in steps 1 to 200,
            then 4.
        seed: seed of random depths; None for constant depths between the steps in ``stages``.
        shortest: smallest random depth in segments; the largest is that of ``stages``.
    """

    stages: Mapping[int, int]
    seed: int | None = None
    shortest: int = 1

    @property
    def largest(self) -> int:
        """Number of segments of the run's longest windows."""
        return max(self.stages.values())

    def of_stage(self, step: int) -> int:
        """Return the depth, in segments, that ``stages`` gives for an optimizer step (from 1); random depths do not
        exceed it."""
        return self.stages[max(first for first in self.stages if first < step)]

    def of_step(self, step: int) -> int:
        """Return the number of segments of the windows of an optimizer step (from 1); equal on all ranks, and after
        resuming."""
        depth = self.of_stage(step)
        if self.seed is None:
            return depth
        # a text as seed: Python hashes it whole, so that neighbouring seeds and steps draw unrelated numbers
        return random.Random(f"bptt_depth {self.seed} {step}").randint(min(self.shortest, depth), depth)


def check_depths(value: object) -> object:
    """Convert the keys of a ``training.bptt_depth`` schedule to whole numbers, and check it; return a number unchanged.

    Raises:
        ValueError: if the schedule does not begin at step 0, does not ascend, or has a depth below 1.
    """
    if not isinstance(value, dict):
        return value
    try:
        steps = [int(str(check_digits(str(key)))) for key in value]
    except ValueError:
        raise ValueError(
            f"the keys of a schedule must be numbers of steps, such as {{0: 2, 200: 4}}, got {value}"
        ) from None
    if wrong := [depth for depth in value.values() if type(depth) is not int or depth < 1]:
        raise ValueError(f"every depth of a schedule must be a whole number of at least 1, got {wrong[0]!r} in {value}")
    if steps[:1] != [0]:
        raise ValueError(f"a schedule must begin at step 0, got {value}: write it like {{0: 2, 200: 4}}")
    if steps != sorted(set(steps)):
        raise ValueError(f"the steps of a schedule must ascend, got {value}: put them in order")
    return dict(zip(steps, value.values(), strict=True))
