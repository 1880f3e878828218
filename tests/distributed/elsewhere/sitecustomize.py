"""Let a run's processes seem to be on another machine, where those of other starts cannot be looked up.

Python imports this file at start-up from PYTHONPATH; the environment variable HMT_DS_ELSEWHERE names the machine."""

import os

from hmt_ds.checkpoint import run_lock

run_lock.machine = lambda: os.environ["HMT_DS_ELSEWHERE"]
run_lock.BEAT, run_lock.PATIENCE, run_lock.POLL = 0.5, 8.0, 0.2
