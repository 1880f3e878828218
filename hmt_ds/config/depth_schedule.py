"""The depth of truncated BPTT (number of segments that gradients flow through) by optimizer step.

It is constant, rises at given steps, or is random.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from hmt_ds.config.value_checks import check_digits


@dataclass(frozen=True)
class DepthSchedule:
    """The depth of truncated BPTT (number of segments that gradients flow through) in each optimizer step, numbered
    from 1.

    Attributes:
        stages: depth in segments, by the number of steps before it applies: {0: 2, 200: 4} is 2 in steps 1 to 200, and
            4 from step 201 on.
        seed: seed of random depths; None for the depths in ``stages`` themselves.
        shortest: smallest random depth in segments; the largest is that of ``stages``.
    """

    stages: Mapping[int, int]
    seed: int | None = None
    shortest: int = 1

    @property
    def largest(self) -> int:
        """Largest depth of truncated BPTT (number of segments that gradients flow through) of any step of the run."""
        return max(self.stages.values())

    def of_stage(self, step: int) -> int:
        """Return the scheduled depth of truncated BPTT, in segments, at an optimizer step; random depths are at most
        this.

        Args:
            step: number of the step, from 1.
        """
        return self.stages[max(first for first in self.stages if first < step)]

    def of_step(self, step: int) -> int:
        """Return the depth of truncated BPTT, in segments, of an optimizer step; the same on all ranks.

        Args:
            step: number of the step, from 1.
        """
        depth = self.of_stage(step)
        if self.seed is None:
            return depth
        # a text as seed: Python hashes it whole, so that neighbouring seeds and steps draw unrelated numbers
        return random.Random(f"bptt_depth {self.seed} {step}").randint(min(self.shortest, depth), depth)


def check_depths(value: object) -> object:
    """Check a value of ``training.bptt_depth``; convert the keys of a schedule to whole numbers.

    Args:
        value: a schedule such as ``{"0": 2, "200": 4}``; anything else is returned unchanged.

    Raises:
        ValueError: the schedule does not begin at step 0, does not ascend, or has a depth below 1.
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
