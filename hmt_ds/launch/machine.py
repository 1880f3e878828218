"""Report whether this machine can take part in a launch: ``python -m hmt_ds.launch.machine TOWARDS GPUS PORT``.

Prints one line of JSON. Needs only Python, so that missing packages can be reported. TOWARDS is another machine that
must be reachable, GPUS the number of ranks, PORT a TCP port that must be free.
"""

import json
import os
import socket
import sys
from importlib.util import find_spec
from typing import TypedDict

from hmt_ds.distributed.network import address_towards, bound_port, interface_of
from hmt_ds.reporting.counted import counted

REQUIRED = ("torch", "deepspeed", "transformers", "pydantic", "hmt_ds")


class Report(TypedDict):
    """A machine's report on whether it can take part in a launch.

    Attributes:
        machine: host name.
        address: IP address from which the machine reaches another one of the launch; None if it does not reach it.
        interface: name of the network interface with that address.
        port: a free port, at which ranks can meet.
        problems: one line per problem.
    """

    machine: str
    address: str | None
    interface: str | None
    port: int
    problems: list[str]


def main() -> None:
    """Check whether this machine can take part in a launch, and print its :class:`Report` as JSON."""
    towards, gpus, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    missing, problems = missing_packages(), []
    if missing:
        problems.append(f"{', '.join(missing)} not installed in {sys.executable}: pip install -e . there")
    if "torch" not in missing and (visible := number_of_gpus(gpus)) < gpus:
        seen = f"{counted(visible, 'GPU')} visible, {counted(gpus, 'rank')} to start"
        problems.append(f"{seen}: start fewer, or set DS_ACCELERATOR=cpu for ranks on CPUs")
    try:
        port = bound_port(port)
    except OSError as error:
        problems.append(f"port {port} cannot be used ({error.strerror}): set another MASTER_PORT, or none")
    address, interface = None, None
    try:
        address = address_towards(towards)
        interface = interface_of(address)
    except OSError as error:
        problems.append(f"cannot reach {towards} ({error.strerror or error}): use host names that all machines resolve")
    report = Report(machine=socket.gethostname(), address=address, interface=interface, port=port, problems=problems)
    print(json.dumps(report), flush=True)


def missing_packages() -> list[str]:
    """Return names of the packages that training needs and this Python lacks."""
    specs = {name: find_spec(name) for name in REQUIRED}
    # an empty folder of that name has a spec too, but no origin
    return [name for name, spec in specs.items() if spec is None or spec.origin is None]


def number_of_gpus(wanted: int) -> int:
    """Return the number of GPUs that torch sees; 0, without importing torch, if no GPU is wanted.

    Args:
        wanted: number of GPUs that the launch needs on this machine.
    """
    if not wanted:
        return 0
    import torch  # takes seconds

    return torch.cuda.device_count()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # skips torch's teardown, which takes a while
