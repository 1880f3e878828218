"""The command ``hmt-ds``: parses the command line, and runs the subcommand or starts the ranks that run it.

Imports no torch, so that help texts and errors of the command line appear at once.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from hmt_ds import __version__
from hmt_ds.benchmark.bench_options import BenchOptions
from hmt_ds.config.completion import PrintCompletion
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import add_options, path_operand, read_options
from hmt_ds.conversion.convert_options import ConvertOptions
from hmt_ds.evaluation.compare_options import CompareOptions
from hmt_ds.generation.options import ChatOptions, GenerateOptions
from hmt_ds.launch.ask import chat, convert, generate, write_tasks
from hmt_ds.launch.before import check, doctor, init, list_keys, preview
from hmt_ds.launch.init_options import InitOptions
from hmt_ds.launch.launch_options import LaunchOptions
from hmt_ds.launch.make_tokenizer import TokenizerOptions, make_tokenizer
from hmt_ds.launch.on_ranks import bench, evaluate, launch, train
from hmt_ds.launch.prepare_data import prepare
from hmt_ds.launch.prepare_options import PrepareOptions
from hmt_ds.launch.start import RankOptions, TrainOptions
from hmt_ds.overview.commands import report, status
from hmt_ds.overview.report_options import ReportOptions
from hmt_ds.planning.plan_options import add_plan_options, read_plan_options
from hmt_ds.preview.options import PreviewOptions
from hmt_ds.reporting.progress import print_problems
from hmt_ds.tasks.options import TaskName, TaskOptions, WriteOptions

NEXT = {  # what follows a command that succeeded; the other commands know more and say it themselves
    "bench": "hmt-ds train RECIPE",
    "compare": "hmt-ds report RUN RUN",
    "report": "open the page in a browser",
}
KEYS_FOLLOW = "Keys of the recipe can follow: --memory.segment_length 256"
RECIPE = "recipe (a YAML file), or the folder of a run, whose recipe.yaml is used"
EVALUATED = (
    "a run (its newest checkpoint is evaluated), one of its checkpoints, a folder that convert wrote, or a recipe "
    "(the weights that its training starts from)"
)
RUNS = "folder of a run, as named by its training.output"
MODEL = "a run (its newest checkpoint is taken), one of its checkpoints, or a folder that convert wrote"
FOLDER_HELP = "folder on the disk that runs will be written to (default: the current folder)"
INTERRUPTED = 130  # the exit code that shells give a program which Ctrl-C has ended
Run = Callable[[argparse.Namespace, list[str]], int]  # from the arguments and the recipe's overrides to an exit code
Add = Callable[..., argparse.ArgumentParser]  # adds a command: name, function, help text, more text


def main() -> None:
    """Run ``hmt-ds`` with this process's command line, and exit: with code 2 for a user's mistake, 130 after Ctrl-C."""
    parser = command_line()
    arguments, overrides = parser.parse_known_args()
    if overrides and not arguments.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    try:
        code = arguments.run(arguments, overrides)
    except ConfigError as error:
        print_problems(error.problems)
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == 0 and arguments.command in NEXT:
        print(f"next        {NEXT[arguments.command]}")
    sys.exit(code)


def command_line() -> argparse.ArgumentParser:
    """Build the argument parser of `hmt-ds` with all subcommands.

    Parsed arguments have the function of the subcommand as ``run``, and ``takes_overrides``, which says whether keys of
    a recipe such as ``--training.steps 10`` may follow.
    """
    parser = argparse.ArgumentParser(prog="hmt-ds", description="Train Hierarchical Memory Transformers on DeepSpeed.")
    parser.add_argument("--version", action="version", version=f"hmt-ds {__version__}")
    completed = "print a script that completes commands, options, files and keys, for this shell"
    parser.add_argument("--print-completion", action=PrintCompletion, choices=("bash", "zsh", "tcsh"), help=completed)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Run, text: str, more: str = "", *, overrides: bool = False) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}. {more}".strip()
        command = commands.add_parser(name, help=text, description=description)
        if overrides:
            command.epilog = "`hmt-ds keys` lists the keys of a recipe. To use several machines, see launch/."
        command.set_defaults(run=run, takes_overrides=overrides)
        return command

    add_preparing(add)
    add_running(add)
    add_looking(add)
    add_using(add)
    return parser


def add_preparing(add: Add) -> None:
    """Add the subcommands used before a run (init, doctor, check, preview, prepare, plan, keys, tokenizer).

    Args:
        add: adds one subcommand to the parser of `hmt-ds`.
    """
    command = add("init", init, "write a recipe with comments", "Asks for what is not given, in a terminal.")
    command.add_argument("file", metavar="FILE", type=path_operand, help="path of the recipe to write, a new YAML file")
    add_options(command, InitOptions)

    more = "Packages, GPUs, DeepSpeed's operators, launchers, network, disk and clock."
    command = add("doctor", doctor, "check this machine for training", more)
    command.add_argument("folder", nargs="?", default=Path(), type=path_operand, metavar="FOLDER", help=FOLDER_HELP)

    more = f"The same as train --dry-run, but the run may exist already. {KEYS_FOLLOW}"
    command = add("check", check, "check a recipe, and start nothing", more, overrides=True)
    command.add_argument("source", metavar="RECIPE", type=path_operand, help=RECIPE)

    more = "Segment by segment: boundaries, sensory tokens, memory, and what is in the loss; a histogram of lengths. "
    more += f"Needs no GPU and no weights. {KEYS_FOLLOW}"
    command = add("preview", preview, "show what a run will read, before it starts", more, overrides=True)
    command.add_argument("source", metavar="RECIPE", type=path_operand, help=RECIPE)
    add_options(command, PreviewOptions)

    more = "Needs no GPU. An interrupted call resumes; train then reads its cache. "
    command = add("prepare", prepare, "tokenize the documents of a recipe", more + KEYS_FOLLOW, overrides=True)
    command.add_argument("source", metavar="RECIPE", type=path_operand, help=RECIPE)
    add_options(command, PrepareOptions)

    more = "Needs no GPU, no data and no weights. Without a RECIPE: --schedule or --compare."
    command = add("plan", plan, "estimate memory, speed and hours of a run before it starts", more, overrides=True)
    add_plan_options(command)

    command = add("keys", list_keys, "list the keys of a recipe, with types and defaults")
    words = "list only keys whose name or help text contains all words given, in upper or lower case"
    command.add_argument("words", nargs="*", metavar="WORD", help=words)
    formats = command.add_mutually_exclusive_group()
    markdown = "print the keys as Markdown tables, as in hmt_ds/config/KEYS.md"
    formats.add_argument("--markdown", action="store_true", help=markdown)
    schema = "print the keys as JSON schema, as in hmt_ds/config/recipe.schema.json, for editors"
    formats.add_argument("--schema", action="store_true", help=schema)

    command = add("tokenizer", make_tokenizer, "train a sentencepiece BPE tokenizer on texts")
    texts = "text to train on: a source as the key data.train.source takes, or a recipe (.yaml), for its data.train"
    command.add_argument("sources", nargs="+", metavar="SOURCE", help=texts)
    add_options(command, TokenizerOptions)


def add_running(add: Add) -> None:
    """Add the subcommands that start ranks, here or in a Slurm job (train, evaluate, bench, launch).

    Args:
        add: adds one subcommand to the parser of `hmt-ds`.
    """
    worth = "measure held-out losses, and how much the memory lowers them"
    for name, run, operand, which, text in (
        ("train", train, "RECIPE", RECIPE, "train a model"),
        ("evaluate", evaluate, "RUN|CHECKPOINT|FOLDER|RECIPE", EVALUATED, worth),
        ("bench", bench, "RECIPE", RECIPE, "measure the speed and memory of some steps"),
    ):
        command = add(name, run, text, KEYS_FOLLOW, overrides=True)
        command.add_argument("source", metavar=operand, type=path_operand, help=which)
        add_options(command, TrainOptions if name == "train" else RankOptions)
        if name != "train":
            add_options(command, BenchOptions if name == "bench" else TaskOptions)

    more = (
        "The scripts are written to the run's folder, under jobs/. With doctor in place of RECIPE: check all machines "
    )
    more += f"of a launch, alone and together. {KEYS_FOLLOW}"
    command = add("launch", launch, "write and submit job scripts, or check all machines", more, overrides=True)
    systems = "slurm submits jobs; ssh and mpi only check machines (doctor), which they read from a hostfile"
    command.add_argument("system", choices=("slurm", "ssh", "mpi"), help=systems)
    command.add_argument("source", metavar="RECIPE|doctor", type=path_operand, help=f"{RECIPE}; or the word doctor")
    add_options(command, LaunchOptions)


def add_looking(add: Add) -> None:
    """Add the subcommands that read what runs have written (compare, status, report).

    Args:
        add: adds one subcommand to the parser of `hmt-ds`.
    """
    more = "A RUN is a run's folder, whose newest evaluation counts, or the JSON file of an evaluation."
    command = add("compare", compare, "compare trained runs on the same held-out tokens", more)
    command.add_argument(
        "runs", nargs="+", type=path_operand, metavar="RUN", help=f"{RUNS}, or an evaluation's .json file"
    )
    add_options(command, CompareOptions)

    more = (
        "Reads only the run's folder: from any shell, on any machine that sees it. Exit code 1 if the run needs help."
    )
    command = add("status", status, "show the state of a run: step, loss, time left, ranks, checkpoints", more)
    command.add_argument("source", type=path_operand, metavar="RUN", help=RUNS)

    more = "Curves, evaluations, ranks, checkpoints, recipe and environment in one file; several runs side by side."
    command = add("report", report, "write an HTML page about runs", more)
    command.add_argument("runs", nargs="+", type=path_operand, metavar="RUN", help=RUNS)
    add_options(command, ReportOptions)


def add_using(add: Add) -> None:
    """Add the subcommands that use a trained model, or write tasks to train on (convert, generate, chat, tasks).

    Args:
        add: adds one subcommand to the parser of `hmt-ds`.
    """
    more = "HMT-pytorch's weights and DeepSpeed's folders need --backbone, and the memory's sizes: "
    more += "--memory.segment_length 990"
    command = add("convert", convert, "write a checkpoint as a Hugging Face folder", more, overrides=True)
    which = "a run, one of its checkpoints, a folder that convert wrote, HMT-pytorch's weights or a DeepSpeed folder"
    command.add_argument("source", type=path_operand, metavar="SOURCE", help=which)
    command.add_argument("target", type=path_operand, metavar="TARGET", help="Hugging Face folder to create")
    add_options(command, ConvertOptions)

    more = "transformers' generation settings can follow: --generation.temperature 0.7"
    for name, run, text, kind in (
        ("generate", generate, "read a document, then continue each prompt", GenerateOptions),
        ("chat", chat, "talk with a model that remembers the conversation by its memory", ChatOptions),
    ):
        command = add(name, run, text, more, overrides=True)
        command.epilog = None
        command.add_argument("source", type=path_operand, metavar="SOURCE", help=MODEL)
        add_options(command, kind)

    more = (
        "Name the file as data.train.source of a recipe; with data.train.format questions the loss is on the answers."
    )
    command = add("tasks", write_tasks, "write generated tasks on long documents, to train on them", more)
    tasks = get_args(TaskName)
    command.add_argument("names", nargs="+", choices=tasks, metavar="TASK", help=f"one or more of {', '.join(tasks)}")
    add_options(command, WriteOptions)


def compare(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds compare`: print, and draw if asked, how runs differ on the same held-out tokens; return the exit
    code.

    Args:
        arguments: parsed command line; ``runs`` are paths of runs or of their evaluations.

    Raises:
        ConfigError: the options or runs cannot be compared.
    """
    options, problems = read_options(CompareOptions, arguments)
    if problems:
        raise ConfigError(problems)
    from hmt_ds.evaluation.compare import compare as compare_runs

    return compare_runs(arguments.runs, options)


def plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds plan`: estimate a recipe, draw a pipeline schedule, or compare clusters; return the exit code.

    Args:
        arguments: parsed command line; ``source`` is a recipe or the name of a known model, or None.
        overrides: keys of the recipe to change, such as ``["--training.batch_size", "4"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options = read_plan_options(arguments)
    if overrides and arguments.source is None:
        raise ConfigError(
            [f"{overrides[0]}: plan has no such option without a RECIPE: name a recipe, or remove the option"]
        )
    from hmt_ds.planning.plan import plan as print_plan

    return print_plan(arguments.source, options, overrides)


if __name__ == "__main__":
    main()
