"""Being told to stop, on any rank, and saying how a rank ended."""

import os
import signal
from pathlib import Path
from types import FrameType

import torch

from hmt_ds.distributed.process_group import add_up, rank

STOPPED = 75  # exit code: what is worth keeping is saved, start it again; EX_TEMPFAIL of sysexits.h


class Stopped(Exception):
    """All ranks leave because one of them was told to; the message is for people."""


class StopSignals:
    """Notes Ctrl-C, SIGTERM (preemption) and SIGUSR1 (a job's time limit is near), from its making on."""

    def __init__(self) -> None:
        self.told = 0
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self.note)
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun's SIGTERM is for ranks that wait for one that has failed
            signal.signal(signal.SIGTERM, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler: whatever is in hand goes on."""
        self.told = 1

    def raise_if_told(self, device: torch.device, message: str) -> None:
        """All ranks call this at the same place.

        Raises:
            Stopped: on all ranks, if any has been told.
        """
        if add_up(torch.tensor([self.told], device=device)).item():
            raise Stopped(message)


def write_exit_code(code: int) -> None:
    """Rank 0 leaves its exit code where a launch script looks for it: not every launcher passes codes on."""
    file = os.environ.get("HMT_DS_EXIT_CODE_FILE")
    if file and rank() == 0:
        Path(file).write_text(f"{code}\n")
