"""A rank that works alone for longer than an exchange would wait. As a rank this file is started by run_ranks."""

import json
import sys
import time
from pathlib import Path

from hmt_ds.distributed.process_group import end_process, from_all_ranks, from_rank_0, join, rank

SECONDS = 4.0  # that an exchange waits


def be_a_rank(result: Path) -> None:
    """What rank 1 got from rank 0, which came late, and then rank 0 from rank 1."""
    join(timeout_minutes=SECONDS / 60)
    if rank() == 0:
        time.sleep(2 * SECONDS)
    first = from_rank_0(f"from rank {rank()}")
    if rank() == 1:
        time.sleep(2 * SECONDS)
    found = from_all_ranks(first)
    if rank() == 0:
        result.write_text(json.dumps(found))
    end_process(0)


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[2]))
