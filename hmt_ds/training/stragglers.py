"""Which rank is slow: how long each one works on a step before it waits for the others."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from hmt_ds.distributed.process_group import add_up, from_all_ranks, rank, world_size
from hmt_ds.parallel.zero import ZeroExecutor
from hmt_ds.reporting.phase_clock import Clock

STEPS = 20  # between two looks; in the first ones much is compiled and measured, so they do not count
NAMED = 5  # ranks in a line


class RankTimes:
    """A rank's own work on each step: reading data, forward, backward; not reducing, stepping and waiting.

    With ``compute.reduction`` segment all wait for each other in every segment: nobody's own time can be told.

    Args:
        executor: gets a clock.
        limit: times the peers' median, above which a rank is slow. (Peers are the ranks of a pipeline stage.)

    Attributes:
        slowest: the rank that took longest, compared with its peers; None before the first look.
        ratio: how many times their median that is.
    """

    def __init__(self, executor: ZeroExecutor, limit: float):
        self.executor, self.limit = executor, limit
        self.clock = Clock(executor.device, only=("wait", "reduce", "step"))
        self.can_tell = executor.compute.reduction == "step"
        if self.can_tell:
            executor.phase = self.clock
        self.seconds: list[float] = []
        self.warm, self.slow = False, list[int]()
        self.slowest: int | None = None
        self.ratio: float | None = None

    @contextmanager
    def of_a_step(self, loading: float) -> Iterator[None]:
        """Around a step whose windows took so many seconds to load."""
        self.clock.begin()
        yield
        self.seconds.append(loading + self.clock.end()["other"])

    def look(self) -> str | None:
        """Compare the ranks, every so many steps; all ranks call it after each.

        Returns:
            What there is to say, if other ranks are slow than at the last look.
        """
        if not self.can_tell or len(self.seconds) < STEPS:
            return None
        own, self.seconds = median(self.seconds), []
        if not self.warm:
            self.warm = True
            return None
        times = self.of_all(own)
        ratios = (times / times.median(dim=1, keepdim=True).values).flatten()  # (of two: the shorter)
        self.ratio, self.slowest = float(ratios.max()), int(ratios.argmax())
        before, self.slow = self.slow, (ratios > self.limit).nonzero().flatten().tolist()
        return self.said(times, ratios) if self.slow != before else None

    def of_all(self, own: float) -> torch.Tensor:
        """``[stages, ranks of a stage]``, seconds."""
        times = torch.zeros(world_size(), dtype=torch.float64, device=self.executor.device)
        times[rank()] = own
        return add_up(times).cpu().view(self.executor.stages, -1)

    def said(self, times: torch.Tensor, ratios: torch.Tensor) -> str:
        """A line on the slow ranks, with their hosts."""
        if not self.slow:
            return "no rank is slow any more"
        hosts = from_all_ranks(socket.gethostname())
        worst = sorted(self.slow, key=lambda n: -float(ratios[n]))[:NAMED]
        each = [f"rank {n} on {hosts[n]} {times.flatten()[n]:.3g} s ({ratios[n]:.1f} times)" for n in worst]
        more = f" and {len(self.slow) - NAMED} more" if len(self.slow) > NAMED else ""
        return f"slow: a step takes {', '.join(each)}{more}; their peers take {times.median():.3g} s, and wait for them"
