"""Run the subcommands that start ranks: ``train``, ``evaluate``, ``bench``, ``launch``.

Imports no torch before one of them runs.
"""

import argparse
from pathlib import Path

from hmt_ds.benchmark.bench_options import BenchOptions
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import read_options
from hmt_ds.config.sections import fields_of
from hmt_ds.launch.ask import ask_tasks
from hmt_ds.launch.launch_options import LaunchOptions
from hmt_ds.launch.start import RankOptions, TrainOptions, dry_run, start_bench, start_ranks
from hmt_ds.tasks.options import TaskOptions

DOCTOR = Path("doctor")  # in place of a recipe: check the machines
SCRIPTS = {"ssh": "launch/hostfile.sh", "mpi": "launch/mpi.sh"}


def train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds train`: train on ranks of this machine, or with ``--dry-run`` only check the recipe; return the exit
    code.

    Args:
        arguments: parsed command line; ``source`` is the path of the recipe or of a run.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(TrainOptions, arguments)
    if options.dry_run:
        return dry_run(arguments.source, options.ranks, overrides, problems)
    return start_ranks("train", arguments.source, options.ranks, overrides, problems)


def evaluate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds evaluate`; return the exit code.

    Measures held-out losses on ranks of this machine, or with ``--tasks`` or ``--questions`` asks questions in this
    process.

    Args:
        arguments: parsed command line; ``source`` is a run, a checkpoint, a recipe or a converted folder.
        overrides: keys of the recipe to change, such as ``["--evaluation.documents", "10"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    rank_options, wrong = read_options(RankOptions, arguments)
    options, problems = read_options(TaskOptions, arguments)
    if not options.asks:
        return start_ranks("evaluate", arguments.source, rank_options.ranks, overrides, wrong + problems)
    return ask_tasks(arguments.source, options, overrides, wrong + problems)


def bench(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds bench` on the ranks of this machine; return the exit code.

    Args:
        arguments: parsed command line; ``source`` is the path of the recipe.
        overrides: keys of the recipe to change, such as ``["--training.batch_size", "2"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    rank_options, wrong = read_options(RankOptions, arguments)
    options, problems = read_options(BenchOptions, arguments)
    return start_bench(arguments.source, rank_options.ranks, options, overrides, wrong + problems)


def launch(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds launch`: write job scripts and submit them, or check all machines of a launch; return the exit code.

    Args:
        arguments: parsed command line; ``source`` is the path of the recipe or of a run, or ``doctor``.
        overrides: keys of the recipe to change, such as ``["--training.steps", "10"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(LaunchOptions, arguments)
    given = {name for name in fields_of(LaunchOptions) if getattr(arguments, name) is not None}
    if arguments.source == DOCTOR:
        if problems:
            raise ConfigError(problems)
        from hmt_ds.launch.allocation import examine_allocation

        return examine_allocation(arguments.system, options, given, overrides)
    if arguments.system in SCRIPTS:
        script = SCRIPTS[arguments.system]
        raise ConfigError(
            [
                f"launch {arguments.system}: only checks machines: to train, run HOSTFILE=FILE bash {script} "
                f"{arguments.source}"
            ]
        )
    problems += [
        f"--{name}: only with `launch ... doctor`: leave it out" for name in ("hostfile", "folder") if name in given
    ]
    from hmt_ds.launch.slurm import launch as submit_jobs

    submit_jobs(str(arguments.source), options, overrides, problems)
    return 0
