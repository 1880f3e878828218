"""``hmt-ds preview RECIPE``: show which documents a training run will read, segment by segment."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.recipe import Pipeline, Recipe
from hmt_ds.data import Packing, document_lengths, load_tokenizer
from hmt_ds.overview.page import write_page
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.preflight.problems import Problems
from hmt_ds.preflight.read_data import ReadSource, read_data
from hmt_ds.preflight.recipe_checks import check_source
from hmt_ds.preflight.source_run import with_source_of_run
from hmt_ds.preview.documents import first_documents
from hmt_ds.preview.options import PreviewOptions
from hmt_ds.preview.page import render
from hmt_ds.preview.terminal import print_preview
from hmt_ds.preview.view import Bar, histogram, padding, show
from hmt_ds.reporting.counted import counted
from hmt_ds.reporting.evaluation_tables import WIDTH
from hmt_ds.training.build import training_loader


def preview(recipe_file: Path, options: PreviewOptions, overrides: list[str]) -> None:
    """Print the documents that training begins with, or write them as an HTML page.

    Args:
        recipe_file: path of the recipe; its tokenizer and data must exist, its model need not.
        options: options of `hmt-ds preview`.
        overrides: keys of the recipe to change, as words such as ``["--memory.segment_length", "256"]``.

    Raises:
        ConfigError: with a line for each problem of the recipe, or if the page cannot be written.
    """
    recipe = load_recipe(recipe_file, overrides)
    prepared, tokenizer = read_training_data(recipe)
    number = options.documents
    bars: list[Bar] = []
    summary = "Generated documents (data.retrieval)."
    if prepared.train is not None:
        lengths, segment_length = document_lengths(prepared.train), recipe.memory.segment_length
        number, bars = min(number, len(lengths)), histogram(lengths, segment_length)
        summary = f"{counted(len(lengths), 'document')}, {counted(lengths.sum(), 'token')} "
        summary += f"in segments of {segment_length:,}; "
        if recipe.data.pack:
            summary += "documents share segments (data.pack)."
        else:
            summary += f"{padding(lengths, segment_length):.1%} of all positions are padding."
    whole = recipe.model_copy(update={"pipeline": Pipeline()})  # one process is no pipeline
    found = first_documents(training_loader(whole, prepared), number, Packing.of(recipe.memory).gap)
    shown = [
        show(one, name_of(one.number, prepared.sources), recipe.memory, tokenizer, options.segments) for one in found
    ]
    if options.html is None:
        print_preview(Console(width=None if sys.stdout.isatty() else WIDTH), summary, bars, shown)
    else:
        write_page(options.html, render(f"What {recipe_file.name} reads", summary, bars, shown), "--html")


def name_of(number: int, sources: Sequence[ReadSource]) -> str:
    """Return the name of a document: its number within its data source, from 0, and the source.

    Args:
        number: index of the document in the data.
        sources: all sources, in the order of their documents; empty if documents are generated.
    """
    for source in sources:
        if number < source.documents:
            return f"Document {number:,} of {source.source.source}"
        number -= source.documents
    return f"Document {number:,}"


def read_training_data(recipe: Recipe) -> tuple[Prepared, PreTrainedTokenizerBase]:
    """Read and tokenize the training documents of a recipe.

    Args:
        recipe: the recipe; its model need not exist.

    Returns:
        The documents, and the tokenizer.

    Raises:
        ConfigError: with a line for each problem of the data or the tokenizer.
    """
    recipe, unusable = with_source_of_run(recipe)
    problems = Problems(check_source(recipe) + unusable)
    data = recipe.data.model_copy(update={"validation": None})
    documents = read_data(recipe.model_copy(update={"data": data}), None, problems)
    if problems or documents is None:
        raise ConfigError(problems)
    tokenizer = load_tokenizer(str(recipe.model.tokenizer or recipe.model.source))
    return Prepared(
        {}, documents.train, None, documents.tokenizer, (), documents.retrieval, documents.sources
    ), tokenizer
