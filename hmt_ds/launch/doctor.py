"""``hmt-ds doctor``: check this machine for training, one line per finding."""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil

from hmt_ds.launch.machine import missing_packages

LAUNCHERS = ("deepspeed", "torchrun", "mpirun", "srun", "pdsh", "ssh")
DISK_BYTES = 2**28  # written to measure the disk
SLOW_DISK = 200e6  # bytes per second; a checkpoint of 1.1B parameters then takes over a minute
SKEW = 2.0  # seconds between this machine's clock and the file system's
LOOPBACK = "lo"
DRIVER = Path("/proc/driver/nvidia/version")


class Finding(NamedTuple):
    """One line of the report of `hmt-ds doctor`.

    Attributes:
        name: the part of the machine that was checked, such as ``disk``.
        text: what was found.
        level: ``ok``, ``note`` (training works, but worse than it could) or ``error`` (training cannot work).
        advice: what a note or error means, and what to do about it; may be empty.
    """

    name: str
    text: str
    level: str = "ok"
    advice: str = ""

    def __str__(self) -> str:
        """The finding as one line, without its name."""
        mark = {"ok": "", "note": "note: ", "error": "error: "}[self.level]
        return f"{mark}{self.text}" + (f"; {self.advice}" if self.advice else "")


def examine(folder: Path) -> Iterator[Finding]:
    """Check each part of this machine for training, and yield one finding for each.

    Args:
        folder: where runs will be written; free space and speed of its disk are measured.
    """
    yield Finding("machine", socket.gethostname())
    yield Finding("python", f"{platform.python_version()}, {platform.machine()}")
    if missing := missing_packages():
        yield Finding("packages", f"{', '.join(missing)} not installed in {sys.executable}", "error")
        return
    yield packages()
    for look in (torch_and_gpus, deepspeed_operators, launchers, network):
        yield from guarded(look)
    yield from guarded(lambda: disk(folder))


def guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of one check of `hmt-ds doctor`; an exception becomes a finding of level ``error``.

    Args:
        look: the check, which yields findings.
    """
    try:
        yield from look()
    except Exception as error:  # a broken installation may raise anything, and the other checks are still worth reading
        name = getattr(look, "__name__", "check").replace("_", " ")
        yield Finding(name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "error")


def packages() -> Finding:
    """Return a finding with the versions of transformers, datasets, peft and liger-kernel."""
    found = []
    for name in ("transformers", "datasets", "peft", "liger-kernel"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return Finding("packages", ", ".join(found))


def torch_and_gpus() -> Iterator[Finding]:
    """Yield findings about torch: its version, CUDA, number and free memory of GPUs, and NCCL."""
    import torch

    cuda = torch.version.cuda
    yield Finding("torch", f"{torch.__version__}, " + (f"built for CUDA {cuda}" if cuda else "built for CPUs"))
    if DRIVER.exists() and (number := re.search(r"\d+\.[\d.]+", DRIVER.read_text())):
        yield Finding("driver", number[0])
    count = torch.cuda.device_count()
    if not count:
        tool = shutil.which("nvidia-smi")
        if tool and subprocess.run([tool, "-L"], capture_output=True, check=False).stdout.strip():
            yield Finding(
                "GPUs", "nvidia-smi lists GPUs but torch sees none", "error", "install a torch built for CUDA"
            )
            return
        yield Finding("GPUs", "none found: ranks run on CPUs", "note")
        return
    kinds = Counter(torch.cuda.get_device_name(device) for device in range(count))
    yield Finding("GPUs", ", ".join(f"{number} x {name}" for name, number in kinds.items()))
    free, total = torch.cuda.mem_get_info()
    yield Finding("GPU memory", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on the first")
    yield Finding("NCCL", ".".join(map(str, torch.cuda.nccl.version())))


def deepspeed_operators() -> Iterator[Finding]:
    """Yield findings about DeepSpeed: its version, and which of its compiled operators (such as fused Adam) can be
    built."""
    from hmt_ds.distributed.operators import deepspeed_version, operators

    found = operators()
    missing = [name for name, possible in found.items() if not possible]
    text = f"{deepspeed_version()}; " + ", ".join(f"{name} {'ok' if ok else 'no'}" for name, ok in found.items())
    slower = "AdamW falls back to torch's, which is slower: install a compiler (g++, nvcc) and ninja"
    yield Finding("deepspeed", text, "note", slower) if missing else Finding("deepspeed", text)
    if not shutil.which("ninja") and not Path(sys.executable).with_name("ninja").exists():
        yield Finding("ninja", "not found: DeepSpeed cannot compile its operators", "note")


def launchers() -> Iterator[Finding]:
    """Yield a finding with the launchers on this machine (torchrun, mpirun, ...), and the current Slurm job, if any."""
    beside = Path(sys.executable).parent
    found = [name for name in LAUNCHERS if shutil.which(name) or (beside / name).exists()]
    job = os.environ.get("SLURM_JOB_ID")
    yield Finding("launchers", ", ".join(found) + (f"; in Slurm job {job}" if job else ""))


def network() -> Iterator[Finding]:
    """Yield a finding with the network interfaces that are up, with their speed in Gb/s, and InfiniBand devices."""
    stats, addresses = psutil.net_if_stats(), psutil.net_if_addrs()
    up = [name for name, one in stats.items() if one.isup and name != LOOPBACK and name in addresses]
    speeds = [f"{name}" + (f" {stats[name].speed / 1000:g} Gb/s" if stats[name].speed else "") for name in up]
    infiniband = sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))
    text = ", ".join(speeds) or "no interface is up: ranks of one machine alone"
    yield Finding("network", text + (f"; InfiniBand {', '.join(infiniband)}" if infiniband else ""))


def disk(folder: Path) -> Iterator[Finding]:
    """Yield findings about a folder's disk: free space in GB, write speed in MB/s, a clock that is off by over 2 s."""
    free = shutil.disk_usage(folder).free
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        block, started = os.urandom(2**22), time.perf_counter()
        for _ in range(DISK_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        speed = DISK_BYTES / (time.perf_counter() - started)
        file.write(b".")
        file.flush()
        os.fsync(file.fileno())
        skew = Path(file.name).stat().st_mtime - time.time()
    text = f"{folder}: {free / 1e9:,.0f} GB free, writes {speed / 1e6:,.0f} MB/s"
    slow = speed < SLOW_DISK
    yield Finding("disk", text, "note", "slow: checkpoint.background true hides it") if slow else Finding("disk", text)
    if abs(skew) > SKEW:
        yield Finding("clock", f"{skew:+.1f} s between the file system and this machine", "note", "set up NTP")


def print_report(folder: Path) -> int:
    """Print the findings of `hmt-ds doctor`; return the exit code, 2 if training cannot work on this machine.

    Args:
        folder: where runs will be written; free space and speed of its disk are measured.
    """
    failed = False
    for finding in examine(folder):
        print(f"{finding.name:<12} {finding}", flush=True)
        failed |= finding.level == "error"
    print("next         " + ("mend the errors above" if failed else "hmt-ds init FILE, or hmt-ds check RECIPE"))
    return 2 if failed else 0
