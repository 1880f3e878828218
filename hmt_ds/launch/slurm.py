"""``hmt-ds launch slurm RECIPE``: job scripts for Slurm, submitted one behind the other."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmt_ds.config.value_checks import whole_number
from hmt_ds.conversion.convert_options import add_convert_options, chosen

# minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds
TIME = r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}"
THEN = ("train", "evaluate", "convert")


def add_launch(commands: Any) -> None:
    """The command ``launch``."""
    command = commands.add_parser(
        "launch",
        help="write and submit job scripts for a cluster",
        description="write a job script that trains a recipe, and more to follow it, and submit them. Keys of the "
        "recipe can follow: --memory.segment_length 256. The scripts go to the run's folder, under jobs/",
    )
    add = command.add_argument
    add("system", choices=("slurm",))
    add("source", metavar="RECIPE")
    add("--nodes", default="1", metavar="N", help="machines (default: 1); with training.elastic also 2-8, from 2 to 8")
    add("--gpus-per-node", default="8", metavar="N", help="and ranks on each (default: 8)")
    add("--time", default="24:00:00", metavar="LIMIT", help="of each start, in Slurm's forms (default: 24:00:00)")
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="another of sbatch's, without its dashes: qos=high; repeat it",
    )
    add("--array", metavar="N", help="N runs whose training.seed counts up, in folders seed_0, seed_1 and so on")
    add(
        "--tries",
        default="3",
        metavar="N",
        help="starts without a newer checkpoint before the job gives up (default: 3)",
    )
    then = 'what follows if all went well: evaluate, convert, "convert --merge", "train other.yaml"; repeat it'
    add("--then", action="append", default=[], metavar="COMMAND", help=then)
    add("--dry-run", action="store_true", help="print the scripts, write and submit nothing")


def launch(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Write and submit, or show; returns the exit code."""
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.reporting.progress import print_problems

    try:
        with deepspeed_unasked():
            jobs = chain(arguments, overrides)
        if not arguments.dry_run and not shutil.which("sbatch"):
            raise ConfigError(["there is no sbatch here: --dry-run shows the scripts"])
        before = None
        for job in jobs:
            file = free_name(job.folder / "jobs" / f"{job.command}.sbatch")
            words = ["sbatch", "--parsable"]
            if before:  # of an array, each run's own
                kind = "aftercorr" if job.allocation.array else "afterok"
                words += [f"--dependency={kind}:{before}", "--kill-on-invalid-dep=yes"]
            words.append(str(file))
            if arguments.dry_run:
                before = f"({job.command})"
                print(f"# {shlex.join(words)}\n\n{job.script(file)}")
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(job.script(file))
            before = submit(words)
            print(f"job {before}   {file}")
    except ConfigError as error:
        print_problems(error.problems)
        return 2
    return 0


@contextmanager
def deepspeed_unasked() -> Iterator[None]:
    """DeepSpeed looks for GPUs when it is imported, and says on stdout that a login node has none.

    Not so where DS_ACCELERATOR is set; but a job inherits the environment, and it has GPUs.
    """
    given = "DS_ACCELERATOR" in os.environ
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    finally:
        if not given:
            del os.environ["DS_ACCELERATOR"]


def chain(arguments: argparse.Namespace, overrides: list[str]) -> list[Any]:
    """The jobs, in order.

    Raises:
        ConfigError: with all that is wrong with the options and the recipes.
    """
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.launch.script import NODE_ENV, Allocation, Job

    problems = [] if NODE_ENV.exists() else [f"{NODE_ENV}: not there; install with pip install -e, from the project"]

    nodes = [whole_number("--nodes", number, 1, problems) for number in arguments.nodes.split("-", 1)]
    if nodes != sorted(nodes):
        problems.append(f"--nodes: must be like 8, or 2-8 for at least and at most, got {arguments.nodes!r}")
    gpus = whole_number("--gpus-per-node", arguments.gpus_per_node, 1, problems)
    array = whole_number("--array", arguments.array, 1, problems) if arguments.array else None
    tries = whole_number("--tries", arguments.tries, 1, problems)
    if not re.fullmatch(TIME, arguments.time):
        problems.append(f"--time: must be like 90 (minutes), 12:00:00 or 2-12 (days-hours), got {arguments.time!r}")
    more = tuple(arguments.sbatch)
    wrong = [option for option in more if not re.fullmatch(r"[a-z][a-z-]+(=\S+)?", option)]
    problems += [f"--sbatch: must be like exclusive or qos=high, got {option!r}" for option in wrong]
    for option, name in (("--partition", arguments.partition), ("--account", arguments.account)):
        if name is not None and not re.fullmatch(r"\S+", name):
            problems.append(f"{option}: must be a name without blanks, got {name!r}")
    common = (arguments.time, arguments.partition, arguments.account, array, more)
    jobs: list[Any] = []
    run: list[str] = []  # recipe and keys of the run that what follows is about
    for text in [shlex.join(["train", arguments.source, *overrides]), *arguments.then]:
        said = split_command(text, problems)
        if not said:
            continue
        command, words = said[0], said[1:]
        folder, seed = (jobs[-1].folder, jobs[-1].seed) if jobs else (Path(), 0)
        target = None
        if command == "train":
            try:
                folder, seed = read_recipe(words, elastic=nodes[0] != nodes[-1], array=array)
                run = words
            except ConfigError as error:
                problems += error.problems
                run = []
        elif run:
            found = follower_problems(command, words, run)
            target = target_of(words) if command == "convert" and not found else None
            problems += [f"--then {command}: {problem}" for problem in found]
        least, most = (nodes[0], nodes[-1]) if command == "train" else (1, 1)
        allocation = Allocation(least, most, gpus, *common)
        job = Job(command, tuple(words), folder, seed, allocation, tries, target)
        problems += target_problems(job, jobs) if target else []
        jobs.append(job)
    if problems:
        raise ConfigError(problems)
    return jobs


def split_command(text: str, problems: list[str]) -> list[str]:
    """A job's command and what follows it, or nothing with the problem noted."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        problems.append(f"--then: must be quoted as in a shell, got {text!r} ({str(error).lower()})")
        return []
    if words and words[0] in THEN:
        return words
    problems.append(f"--then: must begin with one of {', '.join(THEN)}, got {text!r}")
    return []


def read_recipe(words: list[str], *, elastic: bool, array: int | None) -> tuple[Path, int]:
    """Folder and seed of the run that a recipe and overrides describe; of an array, where its runs' folders are.

    Raises:
        ConfigError: if it is no recipe, would go on with a run without being told to, or must be elastic and is not.
    """
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.config.load import load_recipe
    from hmt_ds.launch.script import run_folders
    from hmt_ds.preflight.prepare import check_folders, check_output

    if not words:
        raise ConfigError(["--then train: name a recipe"])
    recipe = load_recipe(words[0], words[1:])
    training = recipe.training
    problems = check_folders(recipe)
    if "\n" in training.output:
        problems.append(f"training.output: must be one line, got {training.output!r}: give another folder")
    for folder in run_folders(Path(training.output), training.seed, array):
        run = training.model_copy(update={"output": str(folder)})
        problems += check_output(recipe.model_copy(update={"training": run}))
    if elastic and not training.elastic:
        problems.append("--nodes: a run on fewer or more machines needs --training.elastic true")
    if problems:
        raise ConfigError(problems)
    return Path(training.output), training.seed


def follower_problems(command: str, words: list[str], run: list[str]) -> list[str]:
    """What would keep ``evaluate`` or ``convert`` from doing its work when the run is at its end.

    Args:
        words: the command's.
        run: recipe and overrides of the run.
    """
    from hmt_ds.config.config_error import ConfigError
    from hmt_ds.config.load import load_recipe
    from hmt_ds.conversion.conversion_error import ConversionError
    from hmt_ds.conversion.convert import Options, check_part, refuse_foreign_options

    try:
        recipe = load_recipe(run[0], [*run[1:], *(words if command == "evaluate" else ())])
    except ConfigError as error:
        return error.problems
    if command == "evaluate":
        return [] if recipe.data.validation else ["data.validation: missing, there is nothing to evaluate on"]
    try:
        arguments, unknown = parse_convert(words)
        options = Options(**chosen(arguments))
        refuse_foreign_options(options)
        check_part(options, recipe.memory.mode, recipe.model.train)
    except (argparse.ArgumentError, ConversionError) as error:
        return [str(error)]
    return [f"unrecognized arguments: {shlex.join(unknown)}"] if unknown else []


def parse_convert(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a conversion, and what is none.

    Raises:
        ArgumentError: if one of them is wrong.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_convert_options(parser)
    return parser.parse_known_args(words)


def target_of(words: list[str]) -> str:
    """What a conversion writes, below the run's folder: each part has its own."""
    what = parse_convert(words)[0].what
    return "converted" if what == "model" else f"converted-{what}"


def target_problems(job: Any, earlier: list[Any]) -> list[str]:
    """What would be in the way of a conversion, which writes new folders alone."""
    there = [run / job.target for run in job.runs if (run / job.target).exists()]
    problems = [f"--then convert: {path} is there already: move it away" for path in there]
    if any((one.folder, one.target) == (job.folder, job.target) for one in earlier):
        target = job.folder / job.target
        problems.append(f"--then convert: two would write {target}: leave one out, or name another part with --what")
    return problems


def submit(words: list[str]) -> str:
    """Call sbatch; returns the job's number.

    Raises:
        ConfigError: with what sbatch says.
    """
    from hmt_ds.config.config_error import ConfigError

    run = subprocess.run(words, capture_output=True, text=True, check=False)
    if run.returncode:
        raise ConfigError([f"{words[-1]}: {line}" for line in run.stderr.splitlines()] or ["sbatch says nothing"])
    return run.stdout.strip().split(";")[0]


def free_name(file: Path) -> Path:
    """The name, or the next one with a number that nothing has: a script may have been edited."""
    number, found = 1, file
    while found.exists():
        number += 1
        found = file.with_stem(f"{file.stem}-{number}")
    return found
