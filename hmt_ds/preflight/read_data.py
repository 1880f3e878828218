"""Load and tokenize the documents of a recipe."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from hmt_ds.config.data_section import Source, SourcesKey
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import (
    DataError,
    RetrievalText,
    check_length,
    check_vocabulary,
    describe_tokenizer,
    read_source,
)
from hmt_ds.data.prepared import SourceTokens
from hmt_ds.data.settings import RetrievalSettings
from hmt_ds.data.task_documents import TaskDocuments, encode_tasks
from hmt_ds.evaluation.figures import segments_needed
from hmt_ds.preflight.problems import Problems
from hmt_ds.preflight.source_tokens import source_keys, streams_of, tokenizer_of, tokens_of


@dataclass(frozen=True)
class ReadSource:
    """A data source whose documents have been read and tokenized.

    Attributes:
        source: the recipe's section about the source.
        found: the source's tokenized documents, and what was left out.
    """

    source: Source
    found: SourceTokens

    @property
    def documents(self) -> int:
        """Number of documents in the data source."""
        return len(self.found.tokens)


@dataclass(frozen=True)
class Documents:
    """The tokenized documents of a recipe.

    Attributes:
        train: training documents; None if only files were looked for, or if documents are generated.
        validation: held-out documents, cut to the part that an evaluation reads; None if the recipe has none.
        tokenizer: the tokenizer's number of tokens and a hash of its vocabulary; None if only files were looked for.
        retrieval: sentences of generated documents; None unless the recipe has data.retrieval.
        sources: the data sources of the training documents, in their order; empty if documents are generated.
        warnings: lines about data sources that can be read, but perhaps otherwise than intended.
        task_documents: generated documents of evaluation.tasks, by task and length.
    """

    train: Dataset | None = None
    validation: Dataset | None = None
    tokenizer: str | None = None
    retrieval: RetrievalText | None = None
    sources: tuple[ReadSource, ...] = ()
    warnings: tuple[str, ...] = ()
    task_documents: tuple[TaskDocuments, ...] = ()


def read_data(recipe: Recipe, vocab_size: int | None, problems: Problems) -> Documents | None:
    """Read and tokenize a recipe's training and held-out documents; return None if that is not possible.

    Args:
        recipe: the recipe.
        vocab_size: number of token ids of the backbone; None if unknown.
        problems: list to which a line is appended for each problem. If it is not empty at first, the run cannot start:
            files are looked for, but nothing is tokenized.
    """
    tokenizer = problems.attempt(lambda: tokenizer_of(recipe), "model.tokenizer: ")
    if tokenizer is not None and vocab_size is not None:
        problems.attempt(lambda: check_vocabulary(tokenizer, vocab_size), "model.tokenizer: ")
    tokenizes = tokenizer is not None and not problems

    warnings = list[str]()

    def read(name: str, source: Source) -> ReadSource | None:
        streams = recipe.data.stream is not None and name.startswith("data.train")
        if tokenizes:
            cache = Path(recipe.data.cache_dir)
            tokens = first_part(recipe, tokenizer, name) if streams else tokens_of(source, tokenizer, cache)
            warnings.extend([f"{name}: {tokens.warning}"] if tokens.warning else [])
            return ReadSource(source, tokens)
        if streams:
            return None
        found = read_source(**source_keys(source))
        return ReadSource(source, SourceTokens(found.documents, found.files, found.left_out, dropped=found.dropped))

    def read_all(key: SourcesKey) -> list[ReadSource]:
        sources = recipe.data.sources(key).items()
        found = [problems.attempt(partial(read, name, source), f"{name}: ") for name, source in sources]
        return [one for one in found if one is not None]

    data, text = recipe.data, None
    if settings := data.retrieval:
        text = encode_retrieval(recipe, settings, tokenizer, problems)
    train, held_out = read_all("train"), read_all("validation")
    tasks = problems.attempt(lambda: tasks_of(recipe, tokenizer), "evaluation.tasks: ") if tokenizes else None
    if problems or tokenizer is None:
        return None
    found = (together(train), shorten(together(held_out), recipe))
    return Documents(*found, describe_tokenizer(tokenizer), text, tuple(train), tuple(warnings), tasks or ())


def tasks_of(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> tuple[TaskDocuments, ...]:
    """Generate and tokenize the documents of the tasks in a recipe's ``evaluation.tasks``; an empty tuple without
    tasks.

    Raises:
        DataError: the tokenizer is not a fast one.
    """
    asked = recipe.evaluation
    if not asked.tasks or tokenizer is None:
        return ()
    return encode_tasks(asked.tasks, recipe.tasks_lengths, asked.tasks_documents, tokenizer)


def first_part(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, name: str) -> SourceTokens:
    """Read and tokenize the first part of a source of a recipe with ``data.stream``, to check the run with it.

    Args:
        recipe: the recipe.
        tokenizer: the recipe's tokenizer.
        name: name of the source, such as ``data.train``.

    Raises:
        DataError: the stream cannot be read, or has no documents.
    """
    found = streams_of(recipe, tokenizer)[name].part(0)
    if found is None:
        raise DataError("the source of data.stream has no rows: name files that have some")
    return found


def together(sources: list[ReadSource]) -> Dataset | None:
    """Concatenate the documents of several data sources; None without sources.

    If only some sources have loss weights of tokens, documents of the others get None as weights, which means ones.

    Args:
        sources: the data sources.
    """
    tokens = [source.found.tokens for source in sources]
    return concatenate_datasets(tokens) if len(tokens) > 1 else next(iter(tokens), None)


def encode_retrieval(
    recipe: Recipe, settings: RetrievalSettings, tokenizer: PreTrainedTokenizerBase | None, problems: Problems
) -> RetrievalText | None:
    """Tokenize the sentences of generated documents, and check that they fit into documents and segments.

    Args:
        recipe: the recipe.
        settings: the recipe's section ``data.retrieval``.
        tokenizer: the tokenizer; None if it could not be loaded.
        problems: list to which a line is appended for each problem.

    Returns:
        The tokenized sentences; None if there is a problem, or no tokenizer.
    """
    lengths = [("training.bptt_depth", False, depth) for depth in sorted(set(recipe.depths.stages.values()))]
    lengths += [("evaluation.retrieval_segments", True, segments) for segments in recipe.retrieval_segments]
    for key, held_out, segments in lengths:
        problems.attempt(partial(check_length, settings, segments, held_out=held_out), f"{key}: ")

    def encode() -> RetrievalText:
        text = RetrievalText(tokenizer)
        text.check(recipe.memory.segment_length, settings.values)
        return text

    return None if tokenizer is None else problems.attempt(encode, "data.retrieval: ")


def shorten(documents: Dataset | None, recipe: Recipe) -> Dataset | None:
    """Cut held-out documents to the part that an evaluation reads: the first documents, and the first tokens of each.

    Args:
        documents: tokenized documents, with the columns ``input_ids`` and ``length``; None gives None.
        recipe: the recipe, whose section ``evaluation`` gives both numbers.
    """
    if documents is None:
        return None
    documents = documents.select(range(min(len(documents), recipe.evaluation.documents or len(documents))))
    tokens = segments_needed(recipe.evaluation.segments_read) * recipe.memory.segment_length

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        lists = {name: value and value[:tokens] for name, value in row.items() if name != "length"}
        return {**lists, "length": min(row["length"], tokens)}

    return documents.map(cut, keep_in_memory=True)
