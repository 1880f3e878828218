"""The thread that ends a rank whose neighbour sends nothing, with fake events in place of a GPU's."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import time
from datetime import timedelta
from hmt_ds.parallel.pipeline.p2p_timeout import P2PTimeout

class Event:
    def __init__(self, seconds):
        self.at = time.monotonic() + seconds
    def query(self):
        return time.monotonic() > self.at

timeout_thread = P2PTimeout(timedelta(seconds=1.5))
for seconds in {seconds}:
    timeout_thread.watch(Event(seconds), f"rank 1 did not send message {{seconds}}")
time.sleep(4)
print(len(timeout_thread.messages), "left")
"""


@pytest.mark.parametrize(
    "seconds, code, said",
    [
        ([0.0, 0.1, 0.8], 0, "0 left"),
        ([0.0, 30, 0.1], 1, "error: rank 1 did not send message 30, for 2 s: see why it hangs or has ended"),
    ],
)
def test_timeout(seconds, code, said):
    """It ends the process for a message that does not arrive in time, and only then."""
    command = [sys.executable, "-c", PROGRAM.format(seconds=seconds)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}  # or DeepSpeed may warn that it finds no GPU
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (ended.returncode, (ended.stdout + ended.stderr).strip()) == (code, said)
