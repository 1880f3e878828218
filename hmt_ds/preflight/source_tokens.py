"""Load the tokenizer of a recipe, and the tokens of one of its data sources. Imports no DeepSpeed."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hmt_ds.config.data_section import Source
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import DataError, load_tokenizer
from hmt_ds.data.disturb import dilate, interleave
from hmt_ds.data.formats import Format, read_template
from hmt_ds.data.prepared import SourceTokens, of_lengths, read_tokens
from hmt_ds.data.stream import Stream, StreamKeys
from hmt_ds.data.stream_mix import StreamMix, part_sizes


def tokens_of(source: Source, tokenizer: PreTrainedTokenizerBase, cache_dir: Path, processes: int = 1) -> SourceTokens:
    """Load and tokenize one data source of a recipe, or open its tokens in the cache.

    Args:
        source: the recipe's section about the source.
        tokenizer: the tokenizer.
        cache_dir: folder of the token cache.
        processes: number of processes that tokenize; 1 for the current one.

    Raises:
        DataError: the source cannot be read, or does not fit its format.
    """
    format = format_of(source)
    keys = source_keys(source) | {"format": format, "cache_dir": cache_dir, "processes": processes}
    read = read_tokens(**keys, tokenizer=tokenizer)
    read = of_lengths(read, source.min_tokens, source.max_tokens, source.source)
    tokens = read.tokens
    if source.interleave:
        tokens = interleave(tokens, source.interleave, cache_dir)
    if source.dilate:
        tokens = dilate(tokens, source.dilate, tokenizer, cache_dir)
    return replace(read, tokens=tokens, chat_template=format.template(tokenizer))


def streams_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, makes: bool = True) -> dict[str, Stream]:
    """Return the sources of a recipe with ``data.stream``, by name, each tokenized in parts while the run reads.

    Args:
        recipe: the recipe.
        tokenizer: the recipe's tokenizer.
        makes: whether this process tokenizes the parts; otherwise it waits for another process that does.

    Raises:
        DataError: a source cannot be read as a stream, or its chat template cannot be read.
    """
    sources = recipe.data.sources("train")
    assert recipe.data.stream is not None
    run = hashlib.sha256(recipe.training.output.encode()).hexdigest()[:12]  # parts belong to a run: it deletes them
    sizes = part_sizes(recipe.data.stream, [source.weight for source in sources.values()])
    streams = {}
    for (name, source), size in zip(sources.items(), sizes, strict=True):
        own = f"stream-{run}" if len(sources) == 1 else f"stream-{run}-{name.rpartition('.')[2]}"
        keys = StreamKeys(source_keys(source), size, (source.min_tokens, source.max_tokens))
        folder = Path(recipe.data.cache_dir) / own
        streams[name] = Stream(keys, tokenizer, format_of(source), folder, makes=makes)
    return streams


def stream_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, makes: bool = True) -> Stream | StreamMix:
    """Return the training documents of a recipe with ``data.stream``: its source as a stream, or several sources as a
    mix.

    Args:
        recipe: the recipe.
        tokenizer: the recipe's tokenizer.
        makes: whether this process tokenizes the parts; otherwise it waits for another process that does.

    Raises:
        DataError: a source cannot be read as a stream, or its chat template cannot be read.
    """
    streams = list(streams_of(recipe, tokenizer, makes=makes).values())
    return streams[0] if len(streams) == 1 else StreamMix(streams)


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a recipe: ``model.tokenizer``, or that of ``model.source``.

    Args:
        recipe: the recipe.

    Raises:
        DataError: the recipe names no tokenizer, or it cannot be loaded.
    """
    name = recipe.model.tokenizer or recipe.model.source
    if not isinstance(name, str):
        raise DataError("missing; model.source is a configuration, which has no tokenizer: name a tokenizer's folder")
    return load_tokenizer(name)


def source_keys(source: Source) -> dict[str, Any]:
    """Return a recipe's data source as keyword arguments for ``read_source``, such as ``{"source": "a.jsonl"}``.

    Args:
        source: the recipe's section about the source.
    """
    names = {"source", "dataset", "text_field", "split", "name", "revision", "separator", "where"}
    keys = source.model_dump(include=names)
    return keys | {"columns": source.columns}


def format_of(source: Source) -> Format:
    """Return the document format of a recipe's data source, which turns rows into tokens.

    Args:
        source: the recipe's section about the source.

    Raises:
        DataError: the format's chat template cannot be read.
    """
    template = None if source.chat_template is None else read_template(source.chat_template)
    return Format(source.row_format, source.prompt_weight, template, source.special_tokens)
