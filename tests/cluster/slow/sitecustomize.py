"""Delay a run once at each of several places, so that a test can send a signal while a rank is there.

Python imports this file at start-up from PYTHONPATH. Rank 0 creates a file named after the place in the folder
HMT_DS_SLOW.
"""

import os
import time
from pathlib import Path

SECONDS = 3


def linger(place: str) -> None:
    """Create the file that marks this place and sleep; do nothing the second time."""
    mark = Path(os.environ["HMT_DS_SLOW"], place)
    if os.environ.get("RANK") == "0" and not mark.exists():
        mark.touch()
        deadline = time.monotonic() + SECONDS
        while (left := deadline - time.monotonic()) > 0:  # a signal would interrupt a single long sleep
            time.sleep(left)


def slow_down() -> None:
    """Wrap the functions that build the model, write a checkpoint and evaluate."""
    from hmt_ds.checkpoint import save
    from hmt_ds.parallel.zero import ZeroExecutor
    from hmt_ds.training import build

    for owner, name, place in (
        (build, "build_hmt", "start"),
        (save, "write_share", "saving"),
        (ZeroExecutor, "read", "evaluation"),
    ):
        right = getattr(owner, name)

        def slow(*arguments, right=right, place=place, **options):
            linger(place)
            return right(*arguments, **options)

        setattr(owner, name, slow)


if "HMT_DS_SLOW" in os.environ and "SLURM_PROCID" in os.environ:
    slow_down()
