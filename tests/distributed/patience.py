"""One rank works alone for longer than the timeout of a collective. Run by run_ranks."""

import json
import sys
import time
from pathlib import Path

from hmt_ds.distributed.process_group import all_gather_object, broadcast_object, end_process, join, rank

SECONDS = 4.0  # timeout of a collective


def be_a_rank(result: Path) -> None:
    """The value that rank 1 received from rank 0, which was late, and the one that rank 0 received from rank 1."""
    join(timeout_minutes=SECONDS / 60)
    if rank() == 0:
        time.sleep(2 * SECONDS)
    first = broadcast_object(f"from rank {rank()}")
    if rank() == 1:
        time.sleep(2 * SECONDS)
    found = all_gather_object(first)
    if rank() == 0:
        result.write_text(json.dumps(found))
    end_process(0)


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[2]))
