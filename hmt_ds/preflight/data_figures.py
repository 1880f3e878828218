"""Count what a run will read: documents, tokens, lengths in segments, and passes over each data source."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from hmt_ds.config.recipe import Recipe
from hmt_ds.data import Packing, document_lengths
from hmt_ds.data.describe import segments_of
from hmt_ds.preflight.read_data import ReadSource
from hmt_ds.reporting.data_table import QUANTILES, DataFigures, SourceFigures

FIRST = 100  # documents whose weights are counted
SAMPLED = 1000  # steps whose depths are drawn, where it changes from step to step


def data_figures(recipe: Recipe, sources: Sequence[ReadSource], pipelines: int) -> DataFigures:
    """Return figures of what a run will read: documents, tokens, lengths, padding, and passes over each data source.

    Args:
        recipe: the recipe.
        sources: the tokenized sources of the training documents; at least one.
        pipelines: number of pipelines, or without pipeline stages of ranks, which read different rows.
    """
    lengths = [document_lengths(source.found.tokens) for source in sources]
    segments = [-(-some // recipe.memory.segment_length) for some in lengths]
    weights = np.array([source.source.weight for source in sources])
    shares = weights / weights.sum()
    by_tokens = recipe.data.mix_by == "tokens"
    units = np.array([some.sum() if by_tokens else len(some) for some in lengths])
    packing = Packing.of(recipe.memory) if recipe.data.pack else None
    each = np.array([segments_of(some, recipe.memory.segment_length, packing) for some in lengths])
    read = segments_of_run(recipe, pipelines)
    passes = read / (shares * each / units).sum() * shares / units
    padding = [
        1 - some.sum() / (count * recipe.memory.segment_length) for some, count in zip(lengths, each, strict=True)
    ]
    rows = zip(sources, lengths, segments, padding, shares, passes, strict=True)
    figures = [figures_of(*row) for row in rows]
    steps = recipe.training.steps
    return DataFigures(
        figures,
        recipe.data.mix_by,
        float(each.sum() / read * steps),
        steps,
        sum(file.stat().st_size for file in cache_files([source.found.tokens for source in sources])),
        recipe.data.cache_dir,
        recipe.data.stream,
    )


def figures_of(
    source: ReadSource, lengths: np.ndarray, segments: np.ndarray, padding: float, share: float, passes: float
) -> SourceFigures:
    """Return the figures of one data source of training documents, for a table.

    Args:
        source: the data source.
        lengths: tokens of each document, ``[documents]``.
        segments: segments of each document, ``[documents]``.
        padding: fraction (0 to 1) of positions without a token.
        share: fraction (0 to 1) of the tokens that the run reads that is from the source.
        passes: how often the run reads the source.
    """
    tokens = int(lengths.sum())
    # a length that documents have, and not one between two of them
    quantiles = np.quantile(segments, list(QUANTILES.values()), method="inverted_cdf").astype(int).tolist()
    in_loss = share_in_loss(source.found.tokens)
    fractions = (float(padding), float(share), float(passes), in_loss)
    numbers = (len(lengths), tokens, quantiles, *fractions, source.found.dropped)
    return SourceFigures(source.source.source, source.found.files, *numbers)


def share_in_loss(tokens: Dataset) -> float:
    """Return the fraction (0 to 1) of tokens with a weight above 0 in the loss, estimated from the first documents.

    Reading all documents for it would take too long.

    Args:
        tokens: the tokenized documents.
    """
    if "weights" not in tokens.column_names:
        return 1.0
    first = tokens.select(range(min(len(tokens), FIRST))).with_format("arrow")[:]["weights"]
    return float((pc.list_flatten(first).to_numpy() > 0).mean())


def segments_of_run(recipe: Recipe, pipelines: int) -> float:
    """Return how many segments a run reads, in all rows of all steps, if no row has padding.

    Args:
        recipe: the recipe.
        pipelines: number of pipelines, or without pipeline stages of ranks, which read different rows.
    """
    training, steps = recipe.training, recipe.training.steps
    sampled = np.unique(np.linspace(1, steps, min(SAMPLED, steps)).astype(int))
    depth = np.mean([recipe.depths.of_step(int(step)) for step in sampled])
    return float(steps * depth * training.gradient_accumulation * training.batch_size * pipelines)


def cache_files(tokens: Sequence[Dataset]) -> set[Path]:
    """Return the paths of the files in which tokenized documents are cached."""
    return {Path(file["filename"]) for some in tokens for file in some.cache_files if Path(file["filename"]).is_file()}
