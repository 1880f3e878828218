"""A timeout for point-to-point messages on GPUs, where only the device waits and the host would not notice."""

import sys
import threading
import time
from collections import deque
from datetime import timedelta
from typing import NamedTuple, Protocol

from hmt_ds.distributed.process_group import end_process

POLL_SECONDS = 0.5


class Event(Protocol):
    """An event recorded on a device's stream, as ``torch.Event``."""

    def query(self) -> bool:
        """Whether the stream has reached the event."""


class PendingMessage(NamedTuple):
    """A message that the device waits for."""

    arrived: Event
    since: float  # of time.monotonic
    failure: str  # what to print if it does not arrive


class P2PTimeout(threading.Thread):
    """A thread that ends this rank, with a line that names the neighbour, if a message does not arrive in time.

    NCCL's watchdog would end the rank too, but with a C++ stack that names no rank.

    Args:
        timeout: for one message, from when the host posted it.
    """

    def __init__(self, timeout: timedelta):
        super().__init__(daemon=True, name="hmt_ds p2p timeout")
        self.seconds = timeout.total_seconds()
        self.messages: deque[PendingMessage] = deque()
        self.start()

    def watch(self, arrived: Event, failure: str) -> None:
        """Watch a message until it arrives. All events are of one stream, so they complete in the order watched."""
        self.messages.append(PendingMessage(arrived, time.monotonic(), failure))

    def run(self) -> None:
        """Poll the oldest pending message; the body of the thread."""
        while True:
            time.sleep(POLL_SECONDS)
            while self.messages and self.messages[0].arrived.query():
                self.messages.popleft()
            if self.messages and time.monotonic() - self.messages[0].since > self.seconds:
                print(f"\nerror: {self.messages[0].failure}, for {self.seconds:.0f} s", file=sys.stderr)
                end_process(1)
