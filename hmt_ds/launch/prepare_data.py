"""Tokenize the documents of a recipe ahead of a run: ``hmt-ds prepare``. Needs no GPU, and imports no DeepSpeed."""

import argparse
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from hmt_ds.config.config_error import ConfigError, collected
from hmt_ds.config.data_section import SourcesKey
from hmt_ds.config.load import load_recipe
from hmt_ds.config.options import read_options
from hmt_ds.config.recipe import Recipe
from hmt_ds.launch.prepare_options import PrepareOptions
from hmt_ds.launch.start import go_offline_without_hub

MOST_PROCESSES = 16  # by default
STOPPED = 130  # the exit code of shells after Ctrl-C


def prepare(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run `hmt-ds prepare`: tokenize the documents of a recipe into its cache, and return the exit code.

    Args:
        arguments: parsed command line; ``source`` is the path of the recipe.
        overrides: keys of the recipe to change, such as ``["--data.train.source", "a.jsonl"]``.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(PrepareOptions, arguments)
    with collected(problems):
        recipe = load_recipe(arguments.source, overrides)
    if problems:
        raise ConfigError(problems)
    go_offline_without_hub()
    try:
        lines = prepare_data(recipe, options.processes or min(MOST_PROCESSES, len(os.sched_getaffinity(0))))
    except KeyboardInterrupt:
        print("\nstopped: shards that are whole are kept, and the same command makes the others")
        return STOPPED
    print("\n".join(lines))
    print(f"next        hmt-ds train {shlex.join([str(arguments.source), *overrides])}")
    return 0


def prepare_data(recipe: Recipe, processes: int) -> list[str]:
    """Tokenize the training and held-out documents of a recipe into its cache.

    Args:
        recipe: the recipe.
        processes: number of processes that tokenize.

    Returns:
        Lines for the user about the documents.

    Raises:
        ConfigError: with a line for each problem.
    """
    from hmt_ds.backbones import BackboneError, read_config
    from hmt_ds.data import DataError, Packing, check_vocabulary, describe_tokens
    from hmt_ds.preflight.source_tokens import tokenizer_of, tokens_of

    if recipe.data.stream:
        raise ConfigError(
            ["data.stream: a stream is tokenized while the run reads it: leave it out to tokenize all documents ahead"]
        )
    silence()
    lines, problems, cache = list[str](), list[str](), Path(recipe.data.cache_dir)
    try:
        tokenizer = tokenizer_of(recipe)
        with suppress(BackboneError):  # the model need not be on this machine
            model = read_config(recipe.model.source, trust_remote_code=recipe.model.trust_remote_code)
            check_vocabulary(tokenizer, getattr(model, "vocab_size", sys.maxsize))
    except DataError as error:
        raise ConfigError([f"model.tokenizer: {error}"]) from None
    keys: dict[str, SourcesKey] = {"data": "train", "held out": "validation"}
    for name, key in keys.items():
        sources = recipe.data.sources(key)
        packing = Packing.of(recipe.memory) if key == "train" and recipe.data.pack else None
        for at, source in sources.items():
            try:
                found = tokens_of(source, tokenizer, cache, processes)
            except DataError as error:
                problems.append(f"{at}: {error}")
                continue
            which = f"{source.source}: " if len(sources) > 1 else ""
            lines.append(f"{name:<11} {which}{describe_tokens(found.tokens, recipe.memory.segment_length, packing)}")
            lines += [f"warning     {at}: {found.warning}"] if found.warning else []
    if problems:
        raise ConfigError(problems)
    if not lines:
        raise ConfigError(["data.train: missing, the recipe has only generated documents: there is nothing to prepare"])
    return [*lines, f"cache       {cache}"]


def silence() -> None:
    """Set log levels so that libraries print only errors, while hmt_ds still prints its own messages."""
    import datasets
    import transformers

    from hmt_ds.reporting.log import start_log

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    start_log(0)
