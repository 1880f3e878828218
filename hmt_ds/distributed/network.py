"""This machine's ports and addresses. Imported where almost nothing is installed: Python's own modules alone."""

import socket
from importlib.util import find_spec


def bound_port(port: int) -> int:
    """The port, or a free one for 0, if it can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what an ended run has left is no hindrance
        probe.bind(("", port))
        probe.listen()
        return int(probe.getsockname()[1])


def address_towards(host: str) -> str:
    """This machine's address on the way to another. Nothing is sent."""
    family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(there)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The name of the network interface that has an address."""
    if find_spec("psutil") is None:
        return None
    import psutil

    found = (name for name, all_of in psutil.net_if_addrs().items() if address in {one.address for one in all_of})
    return next(found, None)
