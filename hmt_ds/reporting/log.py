"""The log of a run: lines on stderr with time, rank and level.

Modules log through ``logging.getLogger(__name__)``. Rank 0 shows messages from INFO on; the other ranks show only
warnings and errors. A warning that concerns all ranks alike is logged by rank 0 alone.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

PACKAGE = "hmt_ds"


class ScreenHandler(logging.Handler):
    """Logging handler that prints above the progress bar, which a plain write to stderr would garble."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one log record above the progress bar."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # a log must never end a run
            self.handleError(record)


def start_log(rank: int) -> None:
    """Show hmt_ds's log messages on stderr: from INFO on rank 0, from WARNING on other ranks."""
    handler = ScreenHandler(logging.INFO if rank == 0 else logging.WARNING)
    layout = f"%(asctime)s rank {rank} %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(layout, datefmt="%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger(PACKAGE)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False  # DeepSpeed and others add handlers to the root, which would print each line again


@contextmanager
def log_seconds(logger: logging.Logger, phase: str) -> Iterator[None]:
    """Log how many seconds the ``with`` block took, unless the block raises.

    Args:
        logger: logger of the calling module.
        phase: name of the work, such as ``building the model``.
    """
    started = time.perf_counter()
    yield
    logger.info("%s: %.1f s", phase, time.perf_counter() - started)
