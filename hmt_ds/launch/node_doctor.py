"""Check this machine for a launch on several machines: ``python -m hmt_ds.launch.node_doctor FOLDER RANKS HOST...``.

Prints one line of JSON per :class:`Finding`, as soon as it is made, so that a check which hangs can be named; then the
:class:`Meeting`.
"""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hmt_ds import __version__
from hmt_ds.distributed.network import address_towards, bound_port
from hmt_ds.launch.doctor import Finding, examine, guarded
from hmt_ds.launch.machine import number_of_gpus
from hmt_ds.reporting.counted import counted


class Meeting(NamedTuple):
    """The address and port on this machine at which the ranks of a launch can connect to each other.

    Attributes:
        address: the IP address from which this machine reaches other machines of the launch.
        port: a free TCP port.
    """

    address: str
    port: int


def findings(folder: Path, ranks: int, hosts: list[str]) -> Iterator[Finding]:
    """Yield the findings of `hmt-ds doctor`, and those about this machine's part of a launch on several machines.

    Args:
        folder: where runs will be written.
        ranks: number of ranks, each with a GPU, that a launch would start here; 0 for ranks on CPUs.
        hosts: names of all machines of the launch.
    """
    yield Finding("project", f"hmt_ds {__version__}, files {sources()}")
    if not folder.is_dir():
        yield Finding("disk", f"{folder}: no such folder", "error", "runs must be at the same path on all machines")
        return
    for finding in examine(folder):
        yield finding
        if finding.name == "packages" and finding.level == "error":
            return
    if (visible := number_of_gpus(ranks)) < ranks:
        yield Finding(
            "ranks", f"{counted(visible, 'GPU')} visible, {counted(ranks, 'rank')} to start", "error", "start fewer"
        )
    yield from guarded(lambda: names(hosts))


def sources() -> str:
    """Return a short hash of the project's Python files, which must be the same on all machines."""
    package, found = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()[:8]


def names(hosts: list[str]) -> Iterator[Finding]:
    """Yield a finding about whether this machine can resolve the names of all machines of a launch.

    Args:
        hosts: names of the machines.
    """
    unknown = []
    for host in hosts:
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            unknown.append(host)
    if unknown:
        advice = "add it to the name server, or to /etc/hosts there"
        yield Finding("names", f"cannot resolve {', '.join(unknown)}", "error", advice)
    else:
        yield Finding("names", f"all {len(hosts)} host names resolve")


def meeting(hosts: list[str]) -> Meeting:
    """Return the address and port on this machine at which the ranks of a launch can connect to each other.

    Args:
        hosts: names of all machines of the launch; the route to another one gives the address.

    Raises:
        OSError: there is no route to any other machine.
    """
    others = [host for host in hosts if host.split(".")[0] != socket.gethostname().split(".")[0]]
    for host in others[:-1]:
        with suppress(OSError):
            return Meeting(address_towards(host), bound_port(0))
    return Meeting(address_towards(others[-1]), bound_port(0))


def main() -> None:
    """Run the checks of this machine for a launch, and print the findings, the address and the port as JSON."""
    folder, ranks, hosts = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    for finding in findings(folder, ranks, hosts):
        print(json.dumps({"finding": finding}), flush=True)
    if len(hosts) > 1:
        try:
            print(json.dumps({"meeting": meeting(hosts)}), flush=True)
        except OSError as error:
            finding = Finding("network", f"no way to another machine ({error.strerror})", "error", "see its names")
            print(json.dumps({"finding": finding}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # skips torch's teardown, which takes a while


if __name__ == "__main__":
    main()
