"""The depth of truncated BPTT by optimizer step: one number, stages of growing depth, or random within a stage."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from hmt_ds.config.value_checks import check_digits


@dataclass(frozen=True)
class DepthSchedule:
    """How many segments the windows of each optimizer step have. Steps count from 1, as in the logs.

    Attributes:
        stages: the depth by the number of steps taken before it holds; has the key 0, and ascending keys.
        seed: of random depths; None for the depth of the stage itself.
        shortest: random depth; a stage's depth is the longest.
    """

    stages: Mapping[int, int]
    seed: int | None = None
    shortest: int = 1

    @property
    def largest(self) -> int:
        """Segments of the longest window of the run."""
        return max(self.stages.values())

    def of_stage(self, step: int) -> int:
        """Return the depth of the stage that a step belongs to."""
        return self.stages[max(first for first in self.stages if first < step)]

    def of_step(self, step: int) -> int:
        """Return how many segments every window of a step has, the same on all ranks and after resuming."""
        depth = self.of_stage(step)
        if self.seed is None:
            return depth
        # a text as seed: Python hashes it whole, so that neighbouring seeds and steps draw unrelated numbers
        return random.Random(f"bptt_depth {self.seed} {step}").randint(min(self.shortest, depth), depth)


def check_depths(value: object) -> object:
    """Return ``training.bptt_depth`` with whole numbers as keys.

    Raises:
        ValueError: if it is a schedule that does not begin at 0, does not ascend, or has other values than depths.
    """
    if not isinstance(value, dict):
        return value
    try:
        steps = [int(str(check_digits(str(key)))) for key in value]
    except ValueError:
        raise ValueError(f"the keys of a schedule are numbers of steps, got {value}") from None
    if wrong := [depth for depth in value.values() if type(depth) is not int or depth < 1]:
        raise ValueError(f"every depth of a schedule must be a whole number of at least 1, got {wrong[0]!r} in {value}")
    if steps[:1] != [0]:
        raise ValueError(f"a schedule must begin at step 0, got {value}")
    if steps != sorted(set(steps)):
        raise ValueError(f"the steps of a schedule must ascend, got {value}")
    return dict(zip(steps, value.values(), strict=True))
