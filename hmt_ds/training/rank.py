"""Run a job (train, evaluate, bench) on this rank: join the process group, check the recipe, return an exit code."""

import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NoReturn, cast

import torch

from hmt_ds.checkpoint import CheckpointError
from hmt_ds.checkpoint.run_lock import RunLock
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import DataError
from hmt_ds.distributed.process_group import (
    LaunchError,
    LostRank,
    all_gather_object,
    broadcast_object,
    end_process,
    is_lost_contact,
    join,
    leave,
    lost_contact,
    rank,
    read_secrets,
    silence_libraries,
    world_size,
)
from hmt_ds.distributed.processes import end_with_parent
from hmt_ds.distributed.stopping import STOPPED, Stopped, write_exit_code
from hmt_ds.preflight.data_figures import data_figures
from hmt_ds.preflight.folder_checks import check_no_run
from hmt_ds.preflight.prepare import Prepared, prepare
from hmt_ds.reporting.data_table import data_lines
from hmt_ds.reporting.log import log_seconds, start_log
from hmt_ds.reporting.progress import print_problems
from hmt_ds.training.bad_steps import TooManyBadSteps

logger = logging.getLogger(__name__)

Job = Callable[[str, list[str], torch.device], None]

# Errors that another start would not cure: the user has to change something.
USER_ERRORS = (ConfigError, CheckpointError, DataError, LaunchError, TooManyBadSteps)
OUT_OF_MEMORY_ADVICE = (
    "Lower training.batch_size; or take compute.recompute segment+layer, compute.reduction segment, a higher ZeRO "
    "stage, or a DeepSpeed file with offloading"
)


def run_as_rank(job: Job) -> int:
    """Join the process group, run a job together with the other ranks, and leave the group; return the exit code.

    Args:
        job: function called with the recipe or run named on the command line, the words that follow it, and this rank's
            device.

    Returns:
        0 if the job finished, 75 if a stop signal ended it, 2 for an error that only the user can mend, 1 if another
        rank was lost.
    """
    end_with_parent()
    try:
        code = exit_code_of(job)
        write_exit_code(code)
    finally:
        leave()
    return code


def exit_code_of(job: Job) -> int:
    """Run a job on this rank, print its errors on rank 0, and return its exit code.

    Args:
        job: function called with the recipe or run named on the command line, the words that follow it, and this rank's
            device.

    Returns:
        0 if the job finished, 75 if a stop signal ended it, 2 for an error that only the user can mend. The process
        exits with 1 at once if it is out of memory or another rank was lost.
    """
    named, *overrides = [word for word in sys.argv[1:] if not word.startswith("--local_rank")] or [""]
    try:
        read_secrets()
        silence_libraries()
        device = join()
        start_log(rank())
        job(named, overrides, device)
    except Stopped as stopped:
        if rank() == 0:
            print(stopped, flush=True)
        return STOPPED
    except USER_ERRORS as error:
        if rank() == 0:
            print_problems(str(error).splitlines())
        return 2
    except torch.OutOfMemoryError as error:
        # At once: the other ranks wait for this one in a collective, and the launcher ends them when it is gone.
        end_out_of_memory(error)
    except RuntimeError as error:
        if not isinstance(error, LostRank) and not is_lost_contact(error):
            raise
        print(file=sys.stderr)
        print_problems([str(error) if isinstance(error, LostRank) else lost_contact(error)])
        end_process(1)
    return 0


def end_out_of_memory(error: Exception) -> NoReturn:
    """Print which settings lower the memory after an out-of-memory error, and exit this rank's process with code 1.

    Args:
        error: the error, whose message has the sizes.
    """
    sizes = ". ".join(str(error).split(". ")[:5])  # torch's first sentences: what was asked for, and who holds what
    print(file=sys.stderr)  # the line of rank 0's progress bar may be unfinished
    print_problems([f"rank {rank()}: {sizes}. {OUT_OF_MEMORY_ADVICE}"])
    end_process(1)


def prepare_together(
    recipe: Recipe, recipe_file: str | Path, *, writes_output: bool, with_data: bool = True
) -> Prepared:
    """Check a recipe and read its data: first on rank 0, then on one rank of each machine, then on all.

    Rank 0 fills the cache of tokenized documents, which the others read. A cache may be local to each machine; then the
    first rank of each machine fills it for the others. All ranks must call it.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe; paths in the recipe may be relative to its folder.
        writes_output: whether training.output will be written, so that it must not hold another run.
        with_data: whether to read documents and tokenizer too.

    Raises:
        ConfigError: on all ranks, with the problems of every rank, and its machine.
    """
    prepared, problems = None, list[str]()
    with log_seconds(logger, "reading documents" if with_data else "checking the recipe"):
        for turn in (rank() == 0, os.environ["LOCAL_RANK"] == "0", True):
            try:
                if turn and not prepared:
                    prepared = prepare(recipe, recipe_file, writes_output=writes_output, with_data=with_data)
            except ConfigError as error:
                host = f"{socket.gethostname()}: " if rank() else ""
                problems = [f"{host}{problem}" for problem in error.problems]
            if found := list(dict.fromkeys(chain(*all_gather_object(problems)))):
                raise ConfigError(found)
    assert prepared is not None
    if rank() == 0 and prepared.sources and writes_output:  # to train
        print("\n".join(data_lines(data_figures(recipe, prepared.sources, world_size() // recipe.pipeline.stages))))
    for warning in prepared.warnings if rank() == 0 else ():
        logger.warning(warning)
    return prepared


@contextmanager
def only_start(recipe: Recipe) -> Iterator[None]:
    """Hold the lock of the run's folder during the ``with`` block, so that no second launch trains into the folder.

    All ranks must enter it together.

    Args:
        recipe: the recipe, whose ``training.output`` is the folder.

    Raises:
        ConfigError: on all ranks, if another process holds the lock, or has trained in the folder since the recipe was
            checked.
    """
    lock = RunLock(Path(recipe.training.output), end_without_lock) if rank() == 0 else None
    try:
        problem = lock.acquire() if lock else None
        problems = [problem] if problem else check_no_run(recipe) if lock else []
        if found := cast(list[str], broadcast_object(problems)):
            raise ConfigError(found)
        yield
    finally:
        if lock:
            lock.release()


def end_without_lock(problem: str) -> NoReturn:
    """Print a problem and exit this process at once, because another process trains into the same folder.

    The launcher then ends the other ranks.

    Args:
        problem: line for the user.
    """
    print(file=sys.stderr)
    print_problems([problem])
    write_exit_code(2)
    end_process(2)


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
