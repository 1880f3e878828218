"""The log of a run: time, rank and level in front of each line, on stderr.

Modules log through ``logging.getLogger(__name__)``. Rank 0 shows everything from INFO on; the other ranks show warnings
and errors only, so what all ranks would warn of alike is logged by rank 0 alone.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

PACKAGE = "hmt_ds"


class ScreenHandler(logging.Handler):
    """Writes records above the progress bar, which a plain write to stderr would tear."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # a log must never end a run
            self.handleError(record)


def start_log(rank: int) -> None:
    """Show the package's log on this rank's stderr."""
    handler = ScreenHandler(logging.INFO if rank == 0 else logging.WARNING)
    layout = f"%(asctime)s rank {rank} %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(layout, datefmt="%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger(PACKAGE)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False  # DeepSpeed and others add handlers to the root, which would print each line again


@contextmanager
def log_seconds(logger: logging.Logger, phase: str) -> Iterator[None]:
    """Log how long a phase of the run took, if it ends well."""
    started = time.perf_counter()
    yield
    logger.info("%s: %.1f s", phase, time.perf_counter() - started)
