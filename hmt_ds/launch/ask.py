"""Commands that load a checkpoint into this process: `hmt-ds convert`, `generate`, `chat`, `tasks`, `evaluate --tasks`.

torch is imported only when one of the commands runs.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.options import read_options
from hmt_ds.conversion.convert_options import ConvertOptions
from hmt_ds.distributed.quick_imports import quick_imports
from hmt_ds.generation.options import ChatOptions, GenerateOptions
from hmt_ds.launch.start import set_rank_environment, start_generation
from hmt_ds.tasks.options import TaskOptions, WriteOptions


def convert(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds convert`: write a Hugging Face folder, print what it contains, and return exit code 0.

    Args:
        arguments: the command line as argparse parsed it.
        overrides: memory settings for checkpoints without a recipe, such as ``["--memory.segment_length", "990"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(ConvertOptions, arguments)
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.conversion.convert import convert as write_converted

        lines = write_converted(arguments.source, arguments.target, options, overrides)
    print("\n".join(lines))
    if not options.dry_run:
        target = arguments.target
        print(f"next        hmt-ds generate {target} --document FILE --prompt TEXT, or hmt-ds chat {target}")
    return 0


@contextmanager
def mistakes_as_lines() -> Iterator[None]:
    """Return a context that silences libraries, and re-raises a user's mistake as ConfigError, one line per problem."""
    set_rank_environment()
    with quick_imports():
        from hmt_ds.distributed.process_group import silence_libraries

        silence_libraries()
        from hmt_ds.conversion.convert import MISTAKES
    try:
        yield
    except MISTAKES as error:
        raise ConfigError(str(error).splitlines()) from None
    except BrokenPipeError:  # what was written is not read to its end, as by head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def generate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds generate`: print continuations of prompts, and return the exit code.

    Args:
        arguments: the command line as argparse parsed it.
        overrides: transformers' generation settings, such as ``["--generation.top_p", "0.9"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(GenerateOptions, arguments)
    if problems:
        raise ConfigError(problems)
    if options.ranks > 1:
        from hmt_ds.distributed.stopping import STOPPED

        code = start_generation(arguments.source, options, overrides)
        return 130 if code == STOPPED else code
    with mistakes_as_lines():
        from hmt_ds.generation.generate import generate as print_continuations

        print_continuations(arguments.source, options, overrides)
    return 0


def chat(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds chat`: answer each line of the standard input, and return exit code 0.

    Args:
        arguments: the command line as argparse parsed it.
        overrides: transformers' generation settings, such as ``["--generation.top_p", "0.9"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(ChatOptions, arguments)
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.generation.chat import chat as answer_lines

        answer_lines(arguments.source, options, overrides)
    return 0


def ask_tasks(source: Path, options: TaskOptions, overrides: list[str], problems: list[str]) -> int:
    """Run `hmt-ds evaluate --tasks` or `--questions`: ask a model about documents, and return exit code 0.

    Args:
        source: a run, a checkpoint of a run, or a converted folder.
        options: options of the tasks.
        overrides: words of the command line that are not options; each is an error.
        problems: problems of the options found so far, one line each.

    Raises:
        ConfigError: with a line for each problem.
    """
    problems += [f"{word}: not with --tasks or --questions, which need no recipe: remove it" for word in overrides[:1]]
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.tasks.evaluate_questions import evaluate_questions
        from hmt_ds.tasks.evaluate_tasks import evaluate_tasks

        (evaluate_tasks if options.tasks else evaluate_questions)(source, options)
    return 0


def write_tasks(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds tasks`: write generated documents with questions to train on, and return exit code 0.

    Args:
        arguments: the command line as argparse parsed it; ``names`` are the tasks.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(WriteOptions, arguments)
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.tasks.write_tasks import write_tasks as write

        number = write(arguments.names, options)
    print(f"documents   {number:,} in {options.output}")
    print(f"next        hmt-ds train launch/recipes/babilong-smollm2.yaml --data.train.source {options.output}")
    return 0
