"""Measure clocks and bandwidth between machines, one rank per machine: ``python -m hmt_ds.distributed.links``.

Needs torch's environment variables or those of mpirun or srun. Prints the rank's :class:`Links` as one line of JSON.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from deepspeed.accelerator import get_accelerator

from hmt_ds.distributed.network import Links, address_towards, interface_of
from hmt_ds.distributed.process_group import all_gather_object, end_process, join, rank, world_size

MINUTES = 1.0  # until a rank that waits for others gives up
BYTES = {"gloo": 2**24, "nccl": 2**28}  # of a message, per backend
REPEATS = 4


def measure(device: torch.device) -> Links:
    """Measure clocks and bandwidth together with all other ranks.

    Args:
        device: the device that the process group's backend communicates from.
    """
    backend, here, ranks = torch.distributed.get_backend(), rank(), world_size()
    sent = torch.ones(BYTES.get(backend, BYTES["gloo"]) // 4, device=device)
    received = torch.empty_like(sent)

    def to_neighbours() -> None:
        send = torch.distributed.P2POp(torch.distributed.isend, sent, (here + 1) % ranks)
        receive = torch.distributed.P2POp(torch.distributed.irecv, received, (here - 1) % ranks)
        for work in torch.distributed.batch_isend_irecv([send, receive]):
            work.wait()

    exchanged = seconds(to_neighbours)
    reduced = seconds(lambda: torch.distributed.all_reduce(received))
    size = sent.numel() * sent.element_size()
    return Links(backend, clock(device), size / exchanged, 2 * (ranks - 1) / ranks * size / reduced)


def seconds(work: Callable[[], object]) -> float:
    """Return the mean duration in seconds of a function that all ranks call together; its first call is not counted.

    Args:
        work: the function, called several times.
    """
    work()
    all_gather_object(None)
    started = time.perf_counter()
    for _ in range(REPEATS):
        work()
    get_accelerator().synchronize()
    return (time.perf_counter() - started) / REPEATS


def clock(device: torch.device) -> float:
    """Return this machine's clock minus rank 0's, in seconds, to within a few milliseconds.

    Args:
        device: the device that the process group's backend communicates from.
    """
    offsets = []
    for _ in range(5):
        together = torch.zeros(1, device=device)
        torch.distributed.all_reduce(together)
        together.item()  # no rank comes here before all have called the all-reduce
        clocks = all_gather_object(time.time())
        offsets.append(clocks[rank()] - clocks[0])
    return statistics.median(offsets)


def main() -> None:
    """Join the process group with the ranks of other machines, measure, print this rank's results, and end
    the process."""
    try:
        interface = interface_of(address_towards(os.environ["MASTER_ADDR"]))
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface or "")
        device = join(MINUTES)
        print(json.dumps({f"rank {rank()}": measure(device)}), flush=True)
    except (OSError, RuntimeError, ValueError) as error:
        print(" ".join(str(error).split())[:300] or type(error).__name__, file=sys.stderr)
        end_process(1)
    end_process(0)


if __name__ == "__main__":
    main()
