"""Show the progress of a run, as a bar in a terminal and as log lines elsewhere, and print errors."""

import logging
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Shows loss, tokens per second, memory and remaining time of a run, in a bar or in log lines.

    Args:
        total: number of steps of the run.
        done: number of steps taken before the run was resumed.
        every: number of steps between two log lines, if stderr is not a terminal.
        shown: whether this rank shows the progress; on other ranks nothing is printed.
    """

    def __init__(self, total: int, done: int = 0, *, every: int = 1, shown: bool = True):
        self.total, self.step, self.every, self.shown = total, done, every, shown
        self.first_step_ended: tuple[int, float] | None = None
        self.bar = tqdm(
            total=total,
            initial=done,
            disable=not (shown and sys.stderr.isatty()),
            unit="step",
            dynamic_ncols=True,
            bar_format="{desc}{n}/{total} |{bar:20}| {elapsed}<{remaining} {postfix}",
        )

    def advance(self, loss: float | None, tokens_per_second: float, memory_gib: float) -> None:
        """Count one optimizer step, and show its loss, speed and memory.

        Args:
            loss: nats per token; None if the step had no labels.
            tokens_per_second: tokens read per second and rank.
            memory_gib: peak memory in GiB.
        """
        self.step += 1
        shown_loss = "no labels," if loss is None else f"loss {loss:.3f}"
        numbers = f"{shown_loss} {tokens_per_second:,.0f} tok/s {memory_gib:.2f} GiB"
        if not self.bar.disable:
            self.bar.set_postfix_str(numbers, refresh=False)
            self.bar.update()
        elif self.shown and (self.step % self.every == 0 or self.step == self.total):
            logger.info("step %d/%d %s, %s left", self.step, self.total, numbers, self.time_left())
        # compilers and measurements make the first step much longer than the others, so it is not counted
        self.first_step_ended = self.first_step_ended or (self.step, time.monotonic())

    def time_left(self) -> str:
        """Return an estimate of the time until the run's last step as text, such as ``1:05:20``; ``?`` before the first
        step."""
        if self.first_step_ended is None:
            return "?"
        step, moment = self.first_step_ended
        return tqdm.format_interval((time.monotonic() - moment) / (self.step - step) * (self.total - self.step))

    def close(self) -> None:
        """End the progress bar and leave it on the screen."""
        self.bar.close()


def print_problems(problems: Iterable[str]) -> None:
    """Print problems of the user's input to stderr, one line each, as ``error: PROBLEM``."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
