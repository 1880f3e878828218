"""What a machine says of itself before a launch: ``python -m hmt_ds.launch.machine TOWARDS GPUS PORT``, a line of JSON.

It must run where almost nothing is installed, to say so.
"""

import json
import os
import socket
import sys
from importlib.util import find_spec

from hmt_ds.distributed.network import address_towards, bound_port, interface_of

NEEDED = ("torch", "deepspeed", "transformers", "pydantic", "hmt_ds")


def main() -> None:
    """Print the line."""
    towards, gpus, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    problems = [f"{', '.join(missing)} not installed in {sys.executable}"] if (missing := absent()) else []
    if "torch" not in missing and (here := number_of_gpus(gpus)) < gpus:
        problems.append(f"{here} GPUs visible, {gpus} ranks are to start (ranks on CPUs: export DS_ACCELERATOR=cpu)")
    try:
        port = bound_port(port)
    except OSError as error:
        problems.append(f"port {port} cannot be had ({error.strerror}): set another MASTER_PORT, or none")
    address, interface = None, None
    try:
        address = address_towards(towards)
        interface = interface_of(address)
    except OSError as error:
        problems.append(f"no way to {towards} ({error.strerror or error})")
    said = {"machine": socket.gethostname(), "address": address, "interface": interface, "port": port}
    print(json.dumps(said | {"problems": problems}), flush=True)


def absent() -> list[str]:
    """Packages that a rank needs and this Python lacks."""
    specs = {name: find_spec(name) for name in NEEDED}
    return [name for name, spec in specs.items() if spec is None or spec.origin is None]  # an empty folder has none


def number_of_gpus(wanted: int) -> int:
    """How many GPUs torch sees; not asked where none is wanted, for that takes seconds."""
    if not wanted:
        return 0
    import torch

    return torch.cuda.device_count()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # torch takes a while to go
