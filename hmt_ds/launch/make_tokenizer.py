"""Run ``hmt-ds tokenizer``, which trains a tokenizer. Imports no torch before it runs."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic.dataclasses import dataclass

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.options import AtLeastOne, FilePath, Options, read_options
from hmt_ds.config.recipe import Recipe
from hmt_ds.config.sections import STRICT

RECIPES = (".yaml", ".yml")


@dataclass(frozen=True, config=STRICT)
class TokenizerOptions(Options):
    """Options of `hmt-ds tokenizer`; each field's docstring is its help text."""

    vocab_size: AtLeastOne = 4096
    """number of tokens in the vocabulary"""
    text_field: Annotated[str, "COLUMN"] = "text"
    """column that holds the text, in files with columns; a recipe names its own by data.train.text_field"""
    output: Annotated[FilePath | None, "FOLDER"] = None
    """new folder to write the tokenizer to; required"""

    def conflicts(self) -> list[str]:
        """Return an error line if ``--output`` is missing; else an empty list."""
        return ["--output: missing, name a new folder"] if self.output is None else []


def make_tokenizer(arguments: argparse.Namespace, _: list[str]) -> int:
    """Run `hmt-ds tokenizer`: train a sentencepiece tokenizer and print its folder; return the exit code.

    Args:
        arguments: the command line as argparse parsed it; ``sources`` are what to train on.

    Raises:
        ConfigError: with a line for each problem.
    """
    options, problems = read_options(TokenizerOptions, arguments)
    if options.output is None or problems:
        raise ConfigError(problems)
    recipes = [load_recipe(name) for name in arguments.sources if is_recipe(name)]
    if any(not recipe.data.sources("train") for recipe in recipes):
        raise ConfigError(["data.train: missing, the recipe has only generated documents: name files of text instead"])
    from hmt_ds.data import DataError, train_on_lines
    from hmt_ds.data.train_tokenizer import source_lines
    from hmt_ds.launch.prepare_data import silence

    silence()
    names = [name for name in arguments.sources if not is_recipe(name)]
    lines = (line for name in names for line in source_lines(name, options.text_field))
    try:
        train_on_lines(
            (line for some in (lines, recipe_lines(recipes)) for line in some),
            options.output,
            options.vocab_size,
            " and ".join(arguments.sources),
        )
    except DataError as error:
        raise ConfigError([str(error)]) from None
    print(f"tokenizer   {options.output}\nnext        hmt-ds train RECIPE --model.tokenizer {options.output}")
    return 0


def is_recipe(name: str) -> bool:
    """Return whether a source of text on the command line is a recipe (ends in .yaml), whose documents are then read.

    Args:
        name: the source as the user named it.
    """
    return Path(name).suffix in RECIPES


def recipe_lines(recipes: list[Recipe]) -> Iterator[str]:
    """Yield the lines of all texts in the training documents of recipes, prompts and answers alike."""
    from hmt_ds.data import read_source
    from hmt_ds.data.train_tokenizer import lines_of
    from hmt_ds.preflight.source_tokens import source_keys

    for recipe in recipes:
        for source in recipe.data.sources("train").values():
            yield from lines_of(read_source(**source_keys(source)).documents)
