"""Find stragglers: ranks whose own work on a step takes longer than that of other ranks, which wait for them."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from hmt_ds.distributed.process_group import all_gather_object, all_reduce_sum, rank, world_size
from hmt_ds.parallel.protocols import Executor
from hmt_ds.reporting.phase_clock import PhaseClock

logger = logging.getLogger(__name__)

STEPS = 20  # between two comparisons
MAX_NAMED = 5  # ranks in one line of the log


class StragglerDetector:
    """Finds ranks whose own work (reading data, forward and backward passes) takes longer than that of their peers.

    The peers of a rank are the ranks of the same pipeline stage. With ``compute.reduction: segment`` the ranks wait for
    each other in every segment, so a rank's own time cannot be told from its peers', and nothing is compared.

    Args:
        executor: the model in its engine, whose phases are timed.
        limit: a rank is a straggler if it takes more than this many times the median of its peers.

    Attributes:
        slowest_rank: the rank with the largest ratio in the last comparison; None before the first one.
        slowest_ratio: time of the slowest rank divided by the median of its peers.
        rank_seconds: seconds of each rank's own work on a step in the last comparison, until they are taken.
    """

    def __init__(self, executor: Executor, limit: float):
        self.executor, self.limit = executor, limit
        self.clock = PhaseClock(executor.device, only=("wait", "reduce", "step"))
        self.enabled = executor.compute.reduction == "step"
        if self.enabled:
            executor.phase = self.clock
        self.seconds: list[float] = []
        self.warmed_up, self.stragglers = False, list[int]()
        self.slowest_rank: int | None = None
        self.slowest_ratio: float | None = None
        self.rank_seconds: list[float] = []

    @contextmanager
    def time_step(self, loading_seconds: float) -> Iterator[None]:
        """Return a context that times this rank's own work on the training step in the ``with`` block.

        Args:
            loading_seconds: seconds that reading the step's data took, to be added.
        """
        self.clock.begin()
        yield
        self.seconds.append(loading_seconds + self.clock.end()["other"])

    def compare(self) -> str | None:
        """Every few steps, compare the seconds of own work of all ranks; all ranks must call it after each step.

        Returns:
            A message for the log if the set of stragglers has changed since the last comparison, else None.
        """
        if not self.enabled or len(self.seconds) < STEPS:
            return None
        own, self.seconds = median(self.seconds), []
        if not self.warmed_up:
            self.warmed_up = True  # in the first steps much is compiled and measured, so they do not count
            return None
        times = self.gather(own)
        self.rank_seconds = [round(seconds, 4) for seconds in times.flatten().tolist()]
        ratios = (times / times.median(dim=1, keepdim=True).values).flatten()  # of two, torch's median is the smaller
        self.slowest_ratio, self.slowest_rank = float(ratios.max()), int(ratios.argmax())
        before, self.stragglers = self.stragglers, (ratios > self.limit).nonzero().flatten().tolist()
        return self.describe(times, ratios) if self.stragglers != before else None

    def take_rank_seconds(self) -> list[float]:
        """Return the seconds of each rank's own work per step, once after each comparison; otherwise an empty list."""
        taken, self.rank_seconds = self.rank_seconds, []
        return taken

    def gather(self, own: float) -> torch.Tensor:
        """Gather each rank's seconds of own work on all ranks, which must call it together.

        Args:
            own: seconds of this rank.

        Returns:
            ``[stages, ranks of a stage]``; without a pipeline there is one stage.
        """
        times = torch.zeros(world_size(), dtype=torch.float64, device=self.executor.device)
        times[rank()] = own
        return all_reduce_sum(times).cpu().view(self.executor.stages, -1)

    def describe(self, times: torch.Tensor, ratios: torch.Tensor) -> str:
        """Describe the stragglers, with hosts and times, for the log.

        Args:
            times: seconds of each rank's own work, ``[stages, ranks of a stage]``.
            ratios: the times divided by the median of each rank's peers, same shape.
        """
        if not self.stragglers:
            return "no rank is slow any more"
        hosts = all_gather_object(socket.gethostname())
        worst = sorted(self.stragglers, key=lambda n: -float(ratios[n]))[:MAX_NAMED]
        each = [f"rank {n} on {hosts[n]} {times.flatten()[n]:.3g} s ({ratios[n]:.1f} times)" for n in worst]
        more = f" and {len(self.stragglers) - MAX_NAMED} more" if len(self.stragglers) > MAX_NAMED else ""
        peers = f"their peers take {times.median():.3g} s, and wait for them"
        return f"slow: a step takes {', '.join(each)}{more}; {peers}"
