"""On a GPU the device waits for a message, and nothing on the host would notice that it never comes."""

import sys
import threading
import time
from collections import deque
from datetime import timedelta
from typing import NamedTuple, Protocol

from hmt_ds.distributed.process_group import end_process

TICK = 0.5  # seconds between two looks


class Event(Protocol):
    """torch's, of a device's stream."""

    def query(self) -> bool:
        """Whether the stream has come to it."""


class Awaited(NamedTuple):
    """A message on its way."""

    came: Event
    since: float  # of time.monotonic
    failure: str  # what to say if it does not come


class P2PTimeout(threading.Thread):
    """Ends this rank with a line that names the neighbour, when a message has not come in time.

    NCCL would end it too, but with the stack of one of its threads, and of no rank by name.

    Args:
        timeout: for one message, from when the host has asked for it.
    """

    def __init__(self, timeout: timedelta):
        super().__init__(daemon=True, name="hmt_ds lookout")
        self.seconds = timeout.total_seconds()
        self.messages: deque[Awaited] = deque()
        self.start()

    def watch(self, came: Event, failure: str) -> None:
        """Look at a message until it has come. They come in the order in which they are watched: by one stream."""
        self.messages.append(Awaited(came, time.monotonic(), failure))

    def run(self) -> None:
        """The thread."""
        while True:
            time.sleep(TICK)
            while self.messages and self.messages[0].came.query():
                self.messages.popleft()
            if self.messages and time.monotonic() - self.messages[0].since > self.seconds:
                print(f"\nerror: {self.messages[0].failure}, for {self.seconds:.0f} s", file=sys.stderr)
                end_process(1)
