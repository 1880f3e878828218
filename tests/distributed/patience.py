"""A rank 0 that works alone for longer than an exchange would wait. As a rank this file is started by run_ranks."""

import json
import sys
import time
from pathlib import Path

from hmt_ds.parallel.distributed import end_process, from_rank_0, join, rank

SECONDS = 8.0  # that an exchange waits


def be_a_rank(result: Path) -> None:
    """What rank 1 got from rank 0, which came late."""
    join(timeout_minutes=SECONDS / 60)
    if rank() == 0:
        time.sleep(2 * SECONDS)
    found = from_rank_0(f"from rank {rank()}")
    if rank() == 1:
        result.write_text(json.dumps(found))
    end_process(0)


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[2]))
