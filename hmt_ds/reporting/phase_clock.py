"""A clock that divides the seconds of a training step among phases such as forward, backward and step."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PHASES = ("summary", "forward", "recompute", "backward", "wait", "reduce", "step", "other")
PIPELINE_PHASES = ("summary", "recall", "forward", "backward", "wait", "reduce", "step", "other")


Moment = Any  # seconds, or an event in the GPU's stream, whose class depends on the accelerator


class PhaseClock:
    """Measures the seconds of each phase of a training step, such as ``forward``.

    Assign it to the attribute ``phase`` of an executor, which opens named phases with it. Phases may be nested and
    repeated. Each moment counts for the innermost open phase, or for ``other`` if none is open. On GPUs the times are
    those of events in the stream, read after the step, so that nothing synchronizes within it.

    Args:
        device: device of the executor.
        only: names of the phases to time; all else counts as ``other``. None: all phases.
    """

    def __init__(self, device: torch.device, only: Collection[str] | None = None):
        self.device, self.only = device, only
        self.begin()

    def begin(self) -> None:
        """Start timing a training step."""
        self.open = ["other"]
        self.marks = [(self.now(), "other")]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the ``with`` block as a phase of the given name."""
        if self.only is not None and name not in self.only:
            yield
            return
        self.open.append(name)
        self.marks.append((self.now(), name))
        try:
            yield
        finally:
            self.open.pop()
            self.marks.append((self.now(), self.open[-1]))

    def end(self) -> dict[str, float]:
        """End the training step; return the seconds of each phase by name, which add up to the step's duration."""
        self.marks.append((self.now(), ""))
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (start, name), (stop, _) in zip(self.marks, self.marks[1:], strict=False):
            seconds[name] += self.between(start, stop)
        return dict(seconds)

    def now(self) -> Moment:
        """Return the present moment: seconds on CPUs; on GPUs an event recorded in the CUDA stream."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.get_device_module(self.device).Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Moment, stop: Moment) -> float:
        """Return the seconds between two moments that :meth:`now` returned.

        Args:
            start, stop: the earlier and the later moment.
        """
        return stop - start if self.device.type == "cpu" else start.elapsed_time(stop) / 1000
