"""Places in a run that take their time, once each, so that a signal can be sent while a rank is there.

Python imports this file at its start, from PYTHONPATH; HMT_DS_SLOW names a folder, where rank 0 says where it is.
"""

import os
import time
from pathlib import Path

SECONDS = 3


def linger(place: str) -> None:
    """Say where this is, and stay a while; in vain the second time."""
    mark = Path(os.environ["HMT_DS_SLOW"], place)
    if os.environ.get("RANK") == "0" and not mark.exists():
        mark.touch()
        deadline = time.monotonic() + SECONDS
        while (left := deadline - time.monotonic()) > 0:  # a signal would end one long sleep
            time.sleep(left)


def slow_down() -> None:
    """Building the model, writing a checkpoint, evaluating."""
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
