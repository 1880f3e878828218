"""Joining the other ranks, and the few exchanges that are not DeepSpeed's own."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, NoReturn

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from hmt_ds.distributed.deepspeed_internals import skip_shared_memory_kernel
from hmt_ds.distributed.mpi import meeting_place

OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
}
HYDRA = {  # the mpirun of MPICH and of Intel's MPI
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
MEETINGS = count()


class LaunchError(ValueError):
    """A start that does not say where the ranks are."""


class LostRank(RuntimeError):
    """A neighbour that is gone, or does not answer in time."""


def join(timeout_minutes: float = 30) -> torch.device:
    """Join the process group that the launcher describes (a single process without one); returns the rank's device."""
    find_place()
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # how much is kept changes what sizes are asked for: avoid fragments
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # By default streams share 8 queues, where what waits for a message holds up what another stream would compute.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    # It warns of messages that wait for each other on one communicator; a pipeline stage has four.
    os.environ.setdefault("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING", "false")
    accelerator = get_accelerator()
    skip_shared_memory_kernel()
    deepspeed.init_distributed(
        accelerator.communication_backend_name(), timeout=timedelta(minutes=timeout_minutes), verbose=False
    )
    device = torch.device(accelerator.device_name(int(os.environ["LOCAL_RANK"])))
    accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    return device


def find_place() -> None:
    """Say in torch's variables which rank this is: they stand already, or mpirun's or srun's do, or it is alone.

    Raises:
        LaunchError: where several machines were started without saying which is the first.
    """
    known = os.environ
    starter = {} if "RANK" in known else started_by()
    known.update({name: known[theirs] for name, theirs in starter.items()})
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        known.setdefault(name, value)
    # deepspeed calls it LOCAL_SIZE; srun gives it for all machines, as 8(x3),4 for three of 8 and one of 4
    here = known.get("LOCAL_WORLD_SIZE", known.get("LOCAL_SIZE", known["WORLD_SIZE"]))
    known["LOCAL_WORLD_SIZE"] = here = re.split(r"[(,]", here)[0]
    if "MASTER_ADDR" not in known and here != known["WORLD_SIZE"]:
        if starter not in (OPEN_MPI, HYDRA):
            only = f"only {here} of {known['WORLD_SIZE']} ranks are on this machine"
            raise LaunchError(f"MASTER_ADDR is not set, and {only}: set it to the first machine's address")
        try:
            found = meeting_place()
        except RuntimeError as error:
            raise LaunchError(f"MASTER_ADDR is not set: {error}") from None
        for name, value in found.items():  # what the user has set stays
            known.setdefault(name, value)
    known.setdefault("MASTER_ADDR", "127.0.0.1")
    known.setdefault("MASTER_PORT", "0" if known["WORLD_SIZE"] == "1" else "29500")


def started_by() -> dict[str, str]:
    """The names by which a launcher other than torch's or deepspeed's says where the rank is; none if it is alone."""
    # mpirun first: inside a Slurm job Slurm's own numbers count mpirun's daemons
    starters = (one for one in (OPEN_MPI, HYDRA, SLURM) if all(theirs in os.environ for theirs in one.values()))
    return next(starters, {})


def leave() -> None:
    """Leave the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End at once, with all output written: gloo's threads sometimes abort the process that waits for them at exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    """This process's number, 0 without a process group."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


@contextmanager
def together() -> Iterator[None]:
    """Around an exchange of all ranks.

    Raises:
        LostRank: if one of them is gone.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0].partition(". This is typically")[0]
        raise LostRank(f"rank {rank()} has lost another one: {said}") from None


def add_up(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, in place."""
    if torch.distributed.is_initialized():
        with together():
            torch.distributed.all_reduce(values)
    return values


def smallest(values: Sequence[float], device: torch.device) -> list[float]:
    """The smallest of each value over all ranks."""
    there = torch.tensor(values, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        with together():
            torch.distributed.all_reduce(there, torch.distributed.ReduceOp.MIN)
    return there.tolist()


def from_rank_0(value: object) -> object:
    """Rank 0's value, on every rank."""
    if not torch.distributed.is_initialized():
        return value
    box = [value]
    with together():
        meet()
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def from_all_ranks(value: object) -> list[Any]:
    """Every rank's value, on every rank."""
    values = [value] * world_size()
    if torch.distributed.is_initialized():
        with together():
            meet()
            torch.distributed.all_gather_object(values, value)
    return values


def meet() -> None:
    """Wait for all ranks, also for one that reads data for hours: an exchange by itself gives up after 30 minutes."""
    store, number = torch.distributed.distributed_c10d._get_default_store(), next(MEETINGS)
    if store.add(f"hmt_ds/came/{number}", 1) == world_size():
        store.set(f"hmt_ds/all_came/{number}", "")
    store.wait([f"hmt_ds/all_came/{number}"], timedelta(days=1))


def quiet() -> None:
    """Leave the libraries' chatter out: what a user reads is ours and errors."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)  # torch's, on functions that DeepSpeed calls
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device")  # DeepSpeed's barriers
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it names the kernels of devices that are not there
    datasets.disable_progress_bars()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
