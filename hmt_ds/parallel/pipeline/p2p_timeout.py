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
    """Interface of a ``torch.cuda.Event`` that was recorded on a device's stream."""

    def query(self) -> bool:
        """Return whether the device's stream has completed all work that was queued before the event."""


class PendingMessage(NamedTuple):
    """A message between pipeline stages that was requested and has not arrived yet.

    Attributes:
        arrived: event recorded on the device's stream after the receive.
        since: time when the receive was posted, in seconds of ``time.monotonic``.
        failure: line to print if the message does not arrive in time.
    """

    arrived: Event
    since: float  # of time.monotonic
    failure: str  # what to print if it does not arrive


class P2PTimeout(threading.Thread):
    """A thread that ends this process if a message from another pipeline stage is late, after printing which rank is
    silent.

    NCCL's watchdog would end the process too, but with a C++ stack that names no rank.

    Args:
        timeout: seconds allowed for each message, from when the host posted its receive.
    """

    def __init__(self, timeout: timedelta):
        super().__init__(daemon=True, name="hmt_ds p2p timeout")
        self.seconds = timeout.total_seconds()
        self.messages: deque[PendingMessage] = deque()
        self.start()

    def watch(self, arrived: Event, failure: str) -> None:
        """Watch a message from another pipeline stage until it arrives.

        Messages must be watched in the order in which one stream receives them.

        Args:
            arrived: event recorded on the device's stream after the receive.
            failure: line to print if the message does not arrive in time.
        """
        self.messages.append(PendingMessage(arrived, time.monotonic(), failure))

    def run(self) -> None:
        """Poll the oldest message that has not arrived, and end this process if the message is late; the body of the
        thread."""
        while True:
            time.sleep(POLL_SECONDS)
            while self.messages and self.messages[0].arrived.query():
                self.messages.popleft()
            if self.messages and time.monotonic() - self.messages[0].since > self.seconds:
                said = f"{self.messages[0].failure}, for {self.seconds:.0f} s: see why it hangs or has ended"
                print(f"\nerror: {said}", file=sys.stderr)
                end_process(1)
