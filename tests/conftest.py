"""Fixtures of all tests."""

import os
import signal

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network
torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts programs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C need it, and their processes inherit it


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
