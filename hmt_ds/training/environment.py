"""Describe the environment of a run for its history: versions, machines and devices."""

import platform
import socket
from importlib.metadata import PackageNotFoundError, version

import torch

from hmt_ds import __version__
from hmt_ds.distributed.process_group import all_gather_object, world_size

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "peft", "liger-kernel")


def environment(device: torch.device) -> dict[str, object]:
    """Describe versions, machines and devices of all ranks, for a run's history. All ranks must call it together.

    Args:
        device: device of this rank.

    Returns:
        JSON values by name: ``hmt_ds``, ``python`` and ``cuda`` (versions), ``packages`` (versions by name),
            ``devices`` (names), ``machines`` (ranks by host) and ``ranks``.
    """
    name = "CPU" if device.type == "cpu" else torch.get_device_module(device).get_device_name()
    ranks = all_gather_object((socket.gethostname(), name))
    machines: dict[str, int] = {}
    for host, _ in ranks:
        machines[host] = machines.get(host, 0) + 1
    return {
        "hmt_ds": __version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: installed(name) for name in PACKAGES},
        "devices": sorted({name for _, name in ranks}),
        "machines": machines,
        "ranks": world_size(),
    }


def installed(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
