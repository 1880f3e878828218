"""What every rank does around its job: join the others, prepare together, end with an exit code."""

import os
import socket
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NoReturn

import torch

from hmt_ds.checkpoint import CheckpointError
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import DataError
from hmt_ds.distributed.process_group import (
    LaunchError,
    LostRank,
    end_process,
    from_all_ranks,
    join,
    leave,
    quiet,
    rank,
)
from hmt_ds.distributed.stopping import STOPPED, Stopped, write_exit_code
from hmt_ds.preflight.prepare import Prepared, prepare
from hmt_ds.reporting.progress import print_problems
from hmt_ds.training.bad_steps import BadSteps

OUT_OF_MEMORY = (
    "Lower training.batch_size; or take compute.recompute segment+layer, compute.reduction segment, a higher ZeRO "
    "stage, or a DeepSpeed file with offloading"
)


def as_rank(work: Callable[[str, list[str], torch.device], None]) -> int:
    """Join the other ranks and work with them; returns the exit code.

    Args:
        work: gets what the command line names, the overrides behind it, and this rank's device.
    """
    quiet()
    try:
        code = exit_code_of(work)
        write_exit_code(code)
    finally:
        leave()
    return code


def exit_code_of(work: Callable[[str, list[str], torch.device], None]) -> int:
    """Work, and say what ended it: 0 at the end, STOPPED if told to, 2 for what another start would not mend."""
    named, *overrides = [word for word in sys.argv[1:] if not word.startswith("--local_rank")] or [""]
    try:
        work(named, overrides, join())
    except Stopped as stopped:
        if rank() == 0:
            print(stopped, flush=True)
        return STOPPED
    except (ConfigError, CheckpointError, DataError, LaunchError, BadSteps) as error:
        if rank() == 0:
            print_problems(str(error).splitlines())
        return 2
    except torch.OutOfMemoryError as error:
        # at once: the others wait for this rank, and the launcher ends them when it is gone
        end_out_of_memory(error)
    except LostRank as error:
        print(file=sys.stderr)
        print_problems([str(error)])
        end_process(1)
    return 0


def end_out_of_memory(error: Exception) -> NoReturn:
    """End this rank with a line that says what to change."""
    said = ". ".join(str(error).split(". ")[:5])  # how much was asked for, and who has what
    print(file=sys.stderr)  # where rank 0's progress bar may stand
    print_problems([f"rank {rank()}: {said}. {OUT_OF_MEMORY}"])
    end_process(1)


def prepare_together(recipe: Recipe, recipe_file: str | Path, *, new_run: bool, with_data: bool = True) -> Prepared:
    """Rank 0 checks the recipe and reads the data; then a rank on each machine, then all, which take it from the cache.

    (A cache may be the machine's own: where it is not, rank 0 has filled it.)

    Raises:
        ConfigError: on all ranks, with what is wrong on any, and on which machine.
    """
    prepared, problems = None, list[str]()
    for turn in (rank() == 0, os.environ["LOCAL_RANK"] == "0", True):
        try:
            if turn and not prepared:
                prepared = prepare(recipe, recipe_file, new_run=new_run, with_data=with_data)
        except ConfigError as error:
            problems = [f"{socket.gethostname()}: {problem}" if rank() else problem for problem in error.problems]
        if found := list(dict.fromkeys(chain(*from_all_ranks(problems)))):
            raise ConfigError(found)
    assert prepared is not None
    for warning in prepared.warnings if rank() == 0 else ():
        print(f"warning: {warning}", flush=True)
    return prepared


def say(text: str) -> None:
    """A line for people, from one rank."""
    if rank() == 0:
        print(text, flush=True)


def resident_bytes() -> int:
    """Most memory that this process has held so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
