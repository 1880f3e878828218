"""Addresses, ports and links of this machine. Needs only the standard library, so that launch scripts can run it
anywhere."""

import socket
from importlib.util import find_spec
from typing import NamedTuple


class Links(NamedTuple):
    """Clock and bandwidth of one machine, measured by one rank on each machine together.

    Attributes:
        backend: the backend of the process group, such as ``nccl``.
        clock: this machine's clock minus rank 0's, in seconds.
        neighbours: bytes per second sent to the next rank, while as many arrive from the previous one.
        all_reduce: bus bandwidth of an all-reduce, in bytes per second.
    """

    backend: str
    clock: float
    neighbours: float
    all_reduce: float


def bound_port(port: int) -> int:
    """Return a TCP port that this machine can listen on.

    Args:
        port: the wanted port; 0 for any free one.

    Raises:
        OSError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore what an ended run has left
        probe.bind(("", port))
        probe.listen()
        return int(probe.getsockname()[1])


def address_towards(host: str) -> str:
    """Return the IP address of this machine on the route to a host. No packet is sent.

    Args:
        host: name or address of the host.

    Raises:
        OSError: if the name cannot be resolved, or there is no route.
    """
    family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(there)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface with an IP address, such as ``eth0``; None if there is none.

    Args:
        address: the IP address.
    """
    if find_spec("psutil") is None:
        return None
    import psutil

    found = (name for name, all_of in psutil.net_if_addrs().items() if address in {one.address for one in all_of})
    return next(found, None)
