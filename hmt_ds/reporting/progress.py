"""The progress bar, and how problems are said."""

import sys

from tqdm import tqdm


class ProgressBar:
    """A bar with loss, tokens per second, memory and time left; lines now and then where there is no terminal.

    Args:
        total: steps of the run.
        done: steps that an earlier start did.
        shown: False on all ranks but one.
    """

    def __init__(self, total: int, done: int = 0, *, shown: bool = True):
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done,
            disable=not shown,
            unit="step",
            dynamic_ncols=terminal,
            mininterval=0.1 if terminal else 10,
            bar_format="{desc}{n}/{total} |{bar:20}| {elapsed}<{remaining} {postfix}",
        )

    def advance(self, loss: float, tokens_per_second: float, memory_gib: float) -> None:
        """One step done."""
        self.bar.set_postfix_str(f"loss {loss:.3f} {tokens_per_second:,.0f} tok/s {memory_gib:.2f} GiB", refresh=False)
        self.bar.update()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.bar.disable:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def print_problems(problems: list[str]) -> None:
    """What is wrong with the user's input, one line each."""
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
