"""Commands that load a checkpoint onto this process: `hmt-ds convert`, `generate`, `chat`, `tasks`, `evaluate --tasks`.

Imports no torch until one of them runs.
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
from hmt_ds.generation.options import ChatOptions, GenerateOptions
from hmt_ds.launch.start import set_rank_environment
from hmt_ds.tasks.options import TaskOptions, WriteOptions


def convert(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds convert` and print a summary of the converted folder."""
    options, problems = read_options(ConvertOptions, arguments)
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.conversion.convert import convert as write_converted

        lines = write_converted(arguments.source, arguments.target, options, overrides)
    print("\n".join(lines))
    if not options.dry_run:
        print(f"next        hmt-ds chat {arguments.target}")
    return 0


@contextmanager
def mistakes_as_lines() -> Iterator[None]:
    """Work on checkpoints with quiet libraries; a user's mistake becomes a ConfigError with a line for each problem."""
    set_rank_environment()
    from hmt_ds.conversion.convert import MISTAKES
    from hmt_ds.distributed.process_group import silence_libraries

    silence_libraries()
    try:
        yield
    except MISTAKES as error:
        raise ConfigError(str(error).splitlines()) from None
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # what was written is not read to its end, as by head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def generate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds generate`: print continuations of prompts."""
    options, problems = read_options(GenerateOptions, arguments)
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.generation.generate import generate as print_continuations

        print_continuations(arguments.source, options, overrides)
    return 0


def chat(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds chat`: answer the lines of the standard input."""
    options, problems = read_options(ChatOptions, arguments)
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.generation.chat import chat as answer_lines

        answer_lines(arguments.source, options, overrides)
    return 0


def ask_tasks(source: Path, options: TaskOptions, overrides: list[str], problems: list[str]) -> int:
    """Run `hmt-ds evaluate --tasks`: ask a model about generated documents."""
    problems += [f"{word}: not with --tasks, which needs no recipe" for word in overrides[:1]]
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.tasks.evaluate_tasks import evaluate_tasks

        evaluate_tasks(source, options)
    return 0


def write_tasks(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds tasks`: write documents with questions to train on."""
    options, problems = read_options(WriteOptions, arguments)
    if problems:
        raise ConfigError(problems)
    with mistakes_as_lines():
        from hmt_ds.tasks.write_tasks import write_tasks as write

        number = write(arguments.names, options)
    print(f"documents   {number:,} in {options.output}")
    print(f"next        hmt-ds train RECIPE --data.train.source {options.output}")
    return 0
