"""Monitor during training whether the model uses its memory, and whether it always retrieves the same one.

Now and then, segments that are about to be trained on are first read without gradients, once with their own memories
and once with another document's. These probes take a small share of the run's time (``logging.memory_probe``).
"""

import math
import statistics
import time
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.process_group import all_reduce_sum, world_size
from hmt_ds.evaluation.figures import WORTH_IT
from hmt_ds.memory import MemoryState, Window
from hmt_ds.memory.boundaries import Instead
from hmt_ds.parallel.protocols import Executor

POOLED = 4  # probes that a verdict is made of
HEADROOM = 2.0  # how many times as long as any before the next probe may take without exceeding its share
FIRST = 0.75  # of a step: a probe reads the window twice, without gradients
NEEDED = 2  # of them at least
EARLY = 0.25  # share of the run's steps before which a memory may still be ignored
MEMORIES = 4  # of a row, from which on it is asked how recall spreads over them
COLLAPSED, RECALLS = 0.95, 16  # share of all recall on one place; recalls that are enough to say so
BETWEEN = 2.0  # standard errors


class Probe(NamedTuple):
    """Sums, over all ranks, of one comparison of losses with a document's own memories and with another document's.

    Attributes:
        sums: sums over all compared segments of d, t, d*d, d*t and t*t, where d is the increase of the loss in nats
            with other memories and t the number of tokens.
        by_age: sums of retrieval weight by how many segments back the memory is, newest first.
        from_oldest: sums of retrieval weight by position of the memory, counted from a row's oldest one.
        recalls: number of segments whose retrieval weights were counted.
    """

    sums: tuple[float, float, float, float, float]
    by_age: tuple[float, ...]
    from_oldest: tuple[float, ...]
    recalls: int


class MemoryWatch:
    """Measures during training how much the memory lowers the loss, and warns if the model ignores it.

    From time to time a probe reads segments with their own and with other documents' memories. It also warns if
    retrieval collapses to one memory, such as always the newest (not on pipelines).

    Args:
        recipe: the checked recipe.
        executor: the model with its optimizer.

    Attributes:
        probes: results of the last probes.
        asked: whether the ranks have agreed to probe before the next step.
        ignored: whether the last verdict was that the model ignores its memory; None before the first verdict.
        share: fraction of the run's time that probes took.
    """

    def __init__(self, recipe: Recipe, executor: Executor):
        self.executor, self.steps, self.limit = executor, recipe.training.steps, recipe.logging.memory_probe
        self.which: Instead = "swapped" if recipe.training.batch_size > 1 else "none"
        self.possible = recipe.memory.mode != "backbone" and self.limit > 0
        self.probes: deque[Probe] = deque(maxlen=POOLED)
        self.asked, self.collapsed = False, False
        self.ignored: bool | None = None
        self.trained = self.spent = 0.0  # seconds of steps, of probes
        self.recent: deque[float] = deque(maxlen=POOLED)  # seconds of the last steps
        self.costs: deque[float] = deque(maxlen=POOLED)  # of the last probes, in steps of that time

    def due(self) -> int:
        """Return 1 if another probe of the memory would stay within its share of the time trained so far, else 0.

        It is expected to take twice as long as the slowest of the last probes. In the long run this delays each probe
        by no more than one, but a slow probe does not exceed the share.
        """
        expected = HEADROOM * max(self.costs, default=FIRST) * max(self.recent, default=0.0)
        return int(self.possible and 0 < self.spent + expected <= self.limit * self.trained)

    def step_done(self, seconds: float, wanted: int) -> None:
        """Count a step; if a probe of the memory is due on every rank, let all of them probe before the next step.

        Args:
            seconds: duration of the step.
            wanted: number of ranks for which a probe was due.
        """
        if self.executor.budget.step > self.executor.budget.warm_up_steps:  # not while memory is measured
            self.trained += seconds
            self.recent.append(seconds)
            self.asked = wanted == world_size()

    def probe(self, window: Window, step: int) -> tuple[dict[str, object], list[str]]:
        """Compare losses with own and with other memories on a batch, and judge the last such probes. All ranks must
        call it.

        Args:
            window: this rank's rows of the coming segments.
            step: number of the coming step.

        Returns:
            Values for the run's history, and a warning line for each problem.
        """
        self.asked, started = False, time.perf_counter()
        self.probes.append(self.read(window))
        taken = time.perf_counter() - started
        self.spent += taken
        self.costs.append(taken / statistics.median(self.recent))
        cost, error = pooled_cost(self.probes)
        values: dict[str, object] = {"cost": finite(cost), "error": finite(error), "instead": self.which}
        values |= {"seconds": round(taken, 3), "share": round(self.spent / self.trained, 4)}
        found = [self.verdict(cost, error, step), self.collapse()]
        return values, [line for line in found if line]

    def verdict(self, cost: float, error: float, step: int) -> str | None:
        """Return a line for the user if the model turns out to ignore its memory, or to use it again; else None.

        Args:
            cost: mean increase of the loss with other memories, in nats per token.
            error: standard error of the mean increase.
            step: number of the coming step.
        """
        if len(self.probes) < NEEDED or not math.isfinite(error) or step < EARLY * self.steps:
            return None
        other = "another document's memory" if self.which == "swapped" else "no memory"
        said = f"{other} costs {cost:.4f} nats per token (+- {BETWEEN * error:.4f})"
        before = self.ignored
        if cost + BETWEEN * error < WORTH_IT:
            self.ignored = True
            return None if before else f"the memory is ignored: {said}; usual with memory.interface paper, not adapted"
        if cost - BETWEEN * error >= WORTH_IT:
            self.ignored = False
            return f"the memory is used now: {said}" if before else None
        return None

    def collapse(self) -> str | None:
        """Return a warning line if nearly all retrieval weight goes to one memory by age, such as the newest; else
        None."""
        recalls, before = sum(probe.recalls for probe in self.probes), self.collapsed
        by_age = largest([probe.by_age for probe in self.probes], "the memory {} segments back")
        share, where = max(by_age, largest([probe.from_oldest for probe in self.probes], "memory {} of a document"))
        self.collapsed = recalls >= RECALLS and share > COLLAPSED
        if before or not self.collapsed:
            return None
        return f"the recall has collapsed: {share:.0%} of it goes to {where}, in {recalls} segments"

    @torch.no_grad()
    def read(self, window: Window) -> Probe:
        """Read segments with their own and with other documents' memories, and sum the loss differences over all ranks.

        All ranks must call it.

        Args:
            window: this rank's rows of the segments.
        """
        places = self.executor.settings.kept_memories
        sums = torch.zeros(6 + 2 * places, dtype=torch.float64, device=self.executor.device)
        state = self.executor.state
        recalls = self.executor.settings.mode == "hmt" and self.executor.stages == 1
        for n, (output, after) in enumerate(self.executor.read(window, state, instead=[self.which])):
            if not self.executor.reports:  # of a pipeline's stages the last one has losses
                continue
            assert output.loss_instead is not None
            self.add_cost(sums, window, n, (output.loss_instead[0] - output.loss).double())
            if recalls and output.recall.shape[1]:
                self.add_recall(sums, output.recall.double(), state, window, n)
            state = after
        values = all_reduce_sum(sums).tolist()
        d, t, dd, dt, tt, recalls = values[:6]
        ages, oldest = tuple(values[6 : 6 + places]), tuple(values[6 + places :])
        return Probe((d, t, dd, dt, tt), ages, oldest, round(recalls))

    def add_cost(self, sums: Tensor, window: Window, n: int, cost: Tensor) -> None:
        """Add the loss differences on segment n to a probe's sums, for rows that have memories and a row to swap them
        with.

        Args:
            sums: sums of the probe, ``[6 + 2 * cached]``: five of loss differences and tokens, the number of
                retrievals, retrieval weights by age and by position; changed in place.
            window: the segments of all rows.
            n: index of the segment.
            cost: loss with other memories minus loss with own ones, in nats, ``[rows]``.
        """
        compared = ~window.starts[:, n]
        if self.which == "swapped":
            compared &= window.neighbours(n) != torch.arange(len(window.starts))
        weights = window.label_weights(n)
        if window.parts is not None:  # the memories are of the segment's first document
            weights = weights * (window.parts[:, n] == 0)
        tokens = weights.sum(dim=1).double().to(cost.device)
        used = compared.to(cost.device) & (tokens > 0)
        d, t = cost[used], tokens[used]
        sums[:5] += torch.stack([d.sum(), t.sum(), (d * d).sum(), (d * t).sum(), (t * t).sum()])

    def add_recall(self, sums: Tensor, recall: Tensor, state: MemoryState | None, window: Window, n: int) -> None:
        """Add the retrieval weights of segment n to a probe's sums, for rows that have several memories.

        Args:
            sums: sums of the probe, ``[6 + 2 * cached]``: five of loss differences and tokens, the number of
                retrievals, retrieval weights by age and by position; changed in place.
            recall: retrieval weights ``[rows, cached]``, oldest memory first.
            state: the memory state before the segment.
            window: the segments of all rows.
            n: index of the segment.
        """
        if state is None or not state.valid.shape[1]:
            return
        valid = state.valid & ~window.starts[:, n].to(state.valid.device)[:, None]
        number, cached, places = valid.sum(dim=1), recall.shape[1], (len(sums) - 6) // 2
        rows = (number >= MEMORIES).nonzero().flatten()
        sums[5] += len(rows)
        age = torch.arange(cached - 1, -1, -1, device=recall.device).expand(len(rows), -1)  # 0 for the newest
        mass = (recall * valid)[rows]
        sums[6 : 6 + places].index_add_(0, age.flatten(), mass.flatten())
        from_oldest = (number[rows, None] - 1 - age).clamp_min(0)
        sums[6 + places :].index_add_(0, from_oldest.flatten(), mass.flatten())


def largest(parts: list[tuple[float, ...]], name: str) -> tuple[float, str]:
    """Return the largest share (0 to 1) of all retrieval weight that goes to the memory at one place, and the place's
    name.

    Args:
        parts: retrieval weights by place (counted by age or by position), for each probe.
        name: name of a place, with ``{}`` for the place's number from 1.
    """
    mass = [sum(column) for column in zip(*parts, strict=True)]
    most = max(mass, default=0.0)
    return (most / sum(mass) if most else 0.0), name.format(mass.index(most) + 1 if mass else 0)


def pooled_cost(probes: "deque[Probe]") -> tuple[float, float]:
    """Return the mean increase of the loss with other documents' memories, in nats per token, and its standard error.

    Both are nan without any probe.

    Args:
        probes: results of the last probes.
    """
    d, t, dd, dt, tt = (sum(column) for column in zip(*(probe.sums for probe in probes), strict=True))
    if not t:
        return math.nan, math.nan
    cost = d / t
    return cost, math.sqrt(max(0.0, dd - 2 * cost * dt + cost * cost * tt)) / t


def finite(value: float) -> float | None:
    """Return a number rounded for JSON; None for nan and inf, which JSON cannot express.

    Args:
        value: the number.
    """
    return round(value, 6) if math.isfinite(value) else None
