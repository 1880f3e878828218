"""Join the process group, and run the few collectives that do not go through DeepSpeed's engine."""

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import torch

from hmt_ds.distributed.quick_imports import hidden

with hidden("mlflow"):  # a second, for DeepSpeed's autotuner alone
    import deepspeed
from deepspeed.accelerator import get_accelerator

from hmt_ds.distributed.deepspeed_internals import skip_shared_memory_kernel
from hmt_ds.distributed.mpi import rendezvous

OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
HYDRA = {  # mpirun of MPICH and Intel MPI
    "RANK": "PMI_RANK",
    "LOCAL_RANK": "MPI_LOCALRANKID",
    "WORLD_SIZE": "PMI_SIZE",
    "LOCAL_WORLD_SIZE": "MPI_LOCALNRANKS",
}
SLURM = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",  # of this srun, not of the job
    "LOCAL_WORLD_SIZE": "SLURM_STEP_TASKS_PER_NODE",
}
BARRIERS = count()
LOOPBACK = "127.0.0.1"
BACKENDS = re.compile(r"gloo/transport|NCCL error|Connection (reset|closed) by peer")


class LaunchError(ValueError):
    """Raised if the launcher's environment variables do not let the ranks meet; the message says which one to set."""


class LostRank(RuntimeError):
    """Raised if another rank has exited, or does not answer within the time limit of collectives."""


def join(timeout_minutes: float = 30) -> torch.device:
    """Join the process group that the launcher's environment variables describe; return this rank's device.

    Without such variables, the group is this process alone.

    Args:
        timeout_minutes: minutes after which a collective that waits for other ranks raises an error.

    Raises:
        LaunchError: the launcher's variables are incomplete or wrong.
    """
    set_rank_variables()
    # The recomputation plan changes the sizes of allocations between steps, which fragments fixed-size segments.
    if "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # By default CUDA streams share 8 queues: a stream that waits for a message would block another one that computes.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    # NCCL warns that messages of one communicator wait for each other; a pipeline stage has four communicators.
    os.environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")
    accelerator = get_accelerator()
    skip_shared_memory_kernel()
    deepspeed.init_distributed(
        accelerator.communication_backend_name(),
        timeout=timedelta(minutes=timeout_minutes),
        init_method=meeting_point(),
        verbose=False,
    )
    device = torch.device(accelerator.device_name(int(os.environ["LOCAL_RANK"])))
    accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    return device


def meeting_point() -> str | None:
    """Return an ``init_method`` URL for ranks that are all on this machine; None if torch's default must be used.

    Ranks that meet at this URL cannot be reached from other machines.
    """
    here = os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"] and os.environ["MASTER_ADDR"] == LOOPBACK
    return "loopback://" if here and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ else None


def meet_on_loopback(
    url: str, timeout: timedelta, **_: object
) -> Iterator[tuple[torch.distributed.TCPStore, int, int]]:
    """Rendezvous handler for torch like ``env://``, but with a store that listens only on the loopback address.

    Args:
        url: unused; port, rank and number of ranks are taken from torch's environment variables.
        timeout: time limit of the store's operations.

    Yields:
        The store, this process's rank, and the number of ranks; or raises a LaunchError if the port is taken.
    """
    own, ranks, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if own:
        yield torch.distributed.TCPStore(LOOPBACK, port, ranks, timeout=timeout), own, ranks
        return
    try:
        listener = socket.create_server((LOOPBACK, port), backlog=max(128, ranks))
    except OSError as error:
        raise LaunchError(
            f"port {port} cannot be used ({os.strerror(error.errno or 0)}): set MASTER_PORT to a free port"
        ) from None
    port, handle = listener.getsockname()[1], listener.detach()
    store = torch.distributed.TCPStore(LOOPBACK, port, ranks, is_master=True, timeout=timeout, master_listen_fd=handle)
    yield store, own, ranks


torch.distributed.register_rendezvous_handler("loopback", meet_on_loopback)


def set_rank_variables() -> None:
    """Set torch's environment variables (``RANK``, ``WORLD_SIZE``, ...) from mpirun's or srun's, unless already set.

    Raises:
        LaunchError: with several machines, if no variable names the first machine.
    """
    known = os.environ
    launcher = {} if "RANK" in known else launcher_variables()
    known.update({name: known[theirs] for name, theirs in launcher.items()})
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        known.setdefault(name, value)
    # deepspeed calls it LOCAL_SIZE; srun lists all machines, as 8(x3),4 for three with 8 ranks and one with 4
    here = known.get("LOCAL_WORLD_SIZE", known.get("LOCAL_SIZE", known["WORLD_SIZE"]))
    known["LOCAL_WORLD_SIZE"] = here = re.split(r"[(,]", here)[0]
    if "MASTER_ADDR" not in known and here != known["WORLD_SIZE"]:
        if launcher not in (OPEN_MPI, HYDRA):
            only = f"only {here} of {known['WORLD_SIZE']} ranks are on this machine"
            raise LaunchError(f"MASTER_ADDR is not set, and {only}: set it to the first machine's address")
        try:
            found = rendezvous()
        except RuntimeError as error:
            raise LaunchError(f"MASTER_ADDR is not set, and {error}") from None
        for name, value in found.items():  # the user's own values win
            known.setdefault(name, value)
    known.setdefault("MASTER_ADDR", LOOPBACK)
    known.setdefault("MASTER_PORT", "0" if known["WORLD_SIZE"] == "1" else "29500")


def read_secrets() -> None:
    """Set environment variables such as ``HF_TOKEN`` from a private file that a launch script wrote, if there is one.

    Raises:
        LaunchError: the file cannot be read.
    """
    if not (file := os.environ.get("HMT_DS_PRIVATE_FILE")):
        return
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="surrogateescape").split("\0")
    except OSError as error:
        raise LaunchError(
            f"{file} cannot be read ({error.strerror}): start from a folder that all machines see"
        ) from None
    for name, _, value in (line.partition("=") for line in lines if line):
        os.environ[name] = value


def launcher_variables() -> dict[str, str]:
    """Return the rank variables that mpirun or srun set, under torch's names (``RANK``, ...).

    Empty if neither of them started this process.
    """
    # mpirun before srun: inside a Slurm job, Slurm's variables number mpirun's daemons
    launchers = (one for one in (OPEN_MPI, HYDRA, SLURM) if all(theirs in os.environ for theirs in one.values()))
    return next(launchers, {})


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """Flush all output and exit at once with exit code ``code``: a normal exit is sometimes aborted by
    gloo's threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


@contextmanager
def report_lost_rank() -> Iterator[None]:
    """Return a context that turns a collective's error about a lost connection into a LostRank with a message of one
    line.

    Raises:
        LostRank: another rank has exited or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        raise LostRank(lost_contact(error)) from None


def is_lost_contact(error: RuntimeError) -> bool:
    """Return whether an error of a collective means that NCCL or gloo has lost the connection to another rank."""
    return isinstance(error, torch.distributed.DistError) or bool(BACKENDS.search(str(error)))


def lost_contact(error: RuntimeError) -> str:
    """Describe in one line, for the user, a collective's error: this rank has lost the connection to another one."""
    said = str(error).strip().partition("\n")[0].partition(". This is typically")[0]
    return f"rank {rank()} lost contact with another rank: {said}; see the other rank's error"


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """All-reduce a tensor (of the same shape on all ranks) in place: sum it over the ranks; return the same tensor."""
    if torch.distributed.is_initialized():
        with report_lost_rank():
            torch.distributed.all_reduce(values)
    return values


def all_reduce_min(values: Sequence[float], device: torch.device) -> list[float]:
    """All-reduce numbers: return the minimum over all ranks of each.

    Args:
        values: this rank's numbers; equally many on every rank.
        device: device that the backend communicates from.
    """
    there = torch.tensor(values, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        with report_lost_rank():
            torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MIN)
    return there.tolist()


def broadcast_object(value: object) -> object:
    """Broadcast a picklable value from rank 0; return it on every rank."""
    if not torch.distributed.is_initialized():
        return value
    box = [value]
    with report_lost_rank():
        wait_for_all()
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: object) -> list[Any]:
    """All-gather a picklable value; return the values of all ranks in the order of ranks, on every rank."""
    values = [value] * world_size()
    if torch.distributed.is_initialized():
        with report_lost_rank():
            wait_for_all()
            torch.distributed.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Wait for all ranks, like a barrier, but with a time limit of a day.

    Collectives have a shorter limit, and a rank may read data for longer.
    """
    store, number = torch.distributed.distributed_c10d._get_default_store(), next(BARRIERS)
    if store.add(f"hmt_ds/came/{number}", 1) == world_size():
        store.set(f"hmt_ds/all_came/{number}", "")
    store.wait([f"hmt_ds/all_came/{number}"], timedelta(days=1))


def silence_libraries() -> None:
    """Set the log levels of DeepSpeed, transformers and other libraries so that they print only errors."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)  # torch's, about functions that DeepSpeed calls
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")  # DeepSpeed's barriers
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of kernels of other devices
    datasets.disable_progress_bars()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
