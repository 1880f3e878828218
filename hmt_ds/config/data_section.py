"""The section ``data`` of a recipe: one or several data sources of training and held-out documents."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import (
    Field,
    TypeAdapter,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from hmt_ds.config.sections import PathText, Section, section
from hmt_ds.data.settings import COLUMNS, NAMED, DatasetName, FormatName, RetrievalSettings, SpecialTokens

FEWEST_ROWS = 50  # of a source in a part of several streams: then its share is its weight within 1%
Scalar = str | int | float | bool


class Bounds(Section):
    """Range of the numbers in a column, from min to max, both included; at least one of the two is given."""

    min: float | None = None
    """Least value. Default: no lower bound."""
    max: float | None = None
    """Greatest value. Default: no upper bound."""

    @model_validator(mode="after")
    def check_bounds(self) -> Bounds:
        """Check that at least one bound is given, and that ``min`` is not above ``max``.

        Raises:
            ValueError: neither bound is given, or ``min`` is above ``max``.
        """
        if (self.min, self.max) == (None, None):
            raise ValueError("a range needs min or max, such as {min: 10}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: lower it, or raise max")
        return self


class Source(Section):
    """Where documents are read from: files, a saved data set, or a data set on the Hugging Face hub."""

    source: PathText
    """Where documents are read from: a file, a folder, or a pattern such as data/*.jsonl.gz, of .txt, .md, .jsonl,
    .ndjson, .json, .csv, .parquet or .arrow files, each also compressed (.gz, .zst); a saved Hugging Face data set; the
    name of a data set on the hub; or an address such as s3://bucket/data/*.parquet or hf://datasets/NAME, whose files
    are copied to the cache of the datasets library. Files of a folder that are not read are listed in the log."""
    format: FormatName = "text"
    """Content of a row. text: a document; completion: a prompt and its completion; messages: a conversation; questions:
    a document (context) with one question (input) and its answers, or with a list of questions and a list of answers.
    """
    dataset: DatasetName | None = None
    """Well-known data set that the source is, such as qasper; it sets format and fields, so leave these out. Default:
    none. hmt_ds/data/README.md lists the data sets' names on the hub."""
    text_field: str = "text"
    """Name of the column that holds a document's text; for format text only."""
    fields: dict[str, str] = Field({})
    """Names of the columns in the source, where they differ from the format's: {prompt: instruction} reads the prompt
    from column instruction. Format completion has prompt and completion; messages has messages; questions has context,
    input and answers. Not for format text."""
    prompt_weight: float = Field(0.0, ge=0, le=1)
    """Weight in the loss, 0 to 1, of the tokens outside answers, for formats other than text. 0: only answers count; 1:
    all tokens count alike. Held-out losses use the weight of the held-out source."""
    chat_template: PathText | None = None
    """Path of a file with a chat template (Jinja), for format messages only. Default: the tokenizer's own template."""
    special_tokens: SpecialTokens | None = None
    """Meaning of the tokenizer's special tokens, such as </s> or <|endoftext|>, where they are written in a document.
    text: plain text; token: these tokens. Those that a chat template writes are always tokens. Default: as the
    tokenizer reads them, which is as tokens unless it has split_special_tokens; hmt-ds check warns if there are any."""
    split: str = "train"
    """Split of the data set to read; train[:10%] reads a part of one. Files in a folder belong to the split in their
    names (train-00000-of-00002.parquet, dev.jsonl); if their names have only one split or none, the whole folder is
    read as train."""
    name: str | None = None
    """Configuration of a data set on the hub. Default: the only one; required if the data set has several."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub. Default: the newest. In an address: hf://datasets/NAME@REVISION."""
    separator: str | None = None
    """Regular expression for the first line of each document in a text file, such as ^Chapter. Default: each file is
    one document. For format text only."""

    where: dict[str, Scalar | list[Scalar] | Bounds] = Field({})
    """Rows to read, by the values of their columns: {language: [en, de], stars: {min: 10}} reads rows with en or de in
    column language and at least 10 in column stars; {min: 10, max: 20} sets both bounds. Default: all rows are read."""
    min_tokens: int = Field(1, ge=1)
    """Length in tokens of the shortest documents to read; shorter ones are left out."""
    max_tokens: int | None = Field(None, ge=1)
    """Length in tokens of the longest documents to read; longer ones are left out. Default: no limit."""
    interleave: int | None = Field(None, ge=1)
    """Number of tokens after which two documents alternate: documents are joined in pairs, to test the memory with
    switching topics. Default: documents are not joined."""
    dilate: int | None = Field(None, ge=1)
    """Length, in tokens, of the parts into which documents are cut to put equally long filler between them; filler does
    not count in the loss. Default: no filler."""
    weight: float = Field(1.0, ge=0)
    """Share of this source in the training data, relative to the weights of the other sources in data.train;
    data.mix_by says whether it counts tokens or documents. 0: the source is not read. Not for held-out documents."""

    @model_validator(mode="after")
    def check_format(self) -> Source:
        """Check that the keys given for a data source fit its format.

        Raises:
            ValueError: a key is given that the format does not use, or ``fields`` has a wrong name or one column twice.
        """
        wanted = COLUMNS[self.format]
        if self.dataset and (self.format, self.fields, self.text_field, self.separator) != ("text", {}, "text", None):
            raise ValueError(
                f"dataset {self.dataset} sets format, fields, text_field and separator: leave these keys out"
            )
        if self.row_format == "text" and (self.fields or self.prompt_weight):
            raise ValueError(
                f"fields {self.fields} and prompt_weight {self.prompt_weight} are not for format text: set text_field "
                "or format"
            )
        if unknown := [name for name in self.fields if name not in wanted]:
            raise ValueError(
                f"fields has {', '.join(unknown)}, but format {self.format} only has {', '.join(wanted)}: rename or "
                "remove it"
            )
        columns = self.columns or {}
        if len(set(columns.values())) < len(columns):
            raise ValueError(
                f"fields {self.fields} names one column for several of {', '.join(wanted)}: give each its own"
            )
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}: lower it, or raise max_tokens"
            )
        if any(values == [] for values in self.where.values()):
            raise ValueError(f"where {self.where} has a list without values: name one, or leave the column out")
        if self.row_format != "messages" and self.chat_template:
            raise ValueError(f"chat_template is for format messages, not {self.row_format}: leave it out")
        if self.format != "text" and (self.text_field != "text" or self.separator):
            raise ValueError(f"text_field and separator are for format text, not {self.format}: leave them out")
        return self

    @property
    def row_format(self) -> FormatName:
        """Format of the source's rows: ``text``, ``completion``, ``messages`` or ``questions``.

        If ``dataset`` names a well-known data set, it is that data set's format.
        """
        return NAMED[self.dataset].format if self.dataset else self.format

    @property
    def columns(self) -> dict[str, str] | None:
        """The columns to read, as a map from the format's column name to the source's; None for format text."""
        if self.dataset:
            return {name: name for name in NAMED[self.dataset].columns}
        return None if self.format == "text" else {name: self.fields.get(name, name) for name in COLUMNS[self.format]}


def one_or_several(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Validate one data source or a list of data sources, so that errors are about the form that the user gave.

    Args:
        value: a mapping or a list of mappings.
        handler: pydantic's validator of the field.
    """
    if value is None or isinstance(value, Source):
        return handler(value)
    return TypeAdapter(list[Source] if isinstance(value, list) else Source).validate_python(value)


SourcesKey = Literal["train", "validation"]
Sources = Annotated[Source | list[Source] | None, WrapValidator(one_or_several)]


@section(
    keys=Annotated[int, Field(ge=2, le=4096)],
    values=Annotated[int, Field(ge=2, le=64)],
    held_out=Annotated[float, Field(gt=0, lt=1)],
)
class Retrieval(RetrievalSettings):
    """Generated documents that state facts and ask for them in later segments, to train and measure memory."""


class Data(Section):
    """Data sources of training and held-out documents, and how documents are read."""

    train: Sources = None
    """Training documents: a file, folder or data set as in data.train.source, or a list of such sources, mixed by their
    weights. Required, unless data.retrieval generates the documents."""
    mix_by: Literal["tokens", "documents"] = "tokens"
    """What the weights of several training sources are shares of. tokens: the tokens that are read; documents: the
    number of documents."""
    retrieval: Retrieval | None = None
    """Settings of generated training documents, in place of data.train, that state facts and ask for them in later
    segments. Default: no generated documents."""
    validation: Sources = None
    """Held-out documents to evaluate the loss on: a file, folder or data set as in data.train.source, or a list of such
    sources, all of which are read. Default: the loss is not evaluated."""
    cache_dir: PathText = "runs/cache"
    """Folder to keep tokenized documents in, so that later runs need not tokenize them again. If it is not shared
    between machines, each machine tokenizes the documents itself."""
    stream: int | None = Field(None, ge=1)
    """Read data.train as a stream, in parts of this many rows: nothing is copied to this machine beforehand, each part
    is tokenized while training reads the one before and is deleted later, and documents are shuffled within a part.
    Several sources share each part by their weights, with mix_by documents. Default: all documents are tokenized before
    training."""
    pack: bool = False
    """Let training documents share segments, to waste fewer positions on padding: a document begins in the segment in
    which the previous one ends, if it fits there or at least a quarter of a segment is left. Attention and memory keep
    documents apart. Held-out documents never share segments."""
    workers: int = Field(0, ge=0, le=256)
    """Number of data loader processes per rank, 0 to 256; 0 loads in the training process. The order of the data does
    not depend on it."""

    @field_validator("train", "validation")
    @classmethod
    def check_sources(cls, value: Source | list[Source] | None, about: ValidationInfo) -> Source | list[Source] | None:
        """Check the data sources of ``data.train`` or ``data.validation``.

        Args:
            value: the source or sources.
            about: pydantic's information on the field, whose name is ``train`` or ``validation``.

        Raises:
            ValueError: the list is empty, all weights are 0, or a held-out source has a weight.
        """
        sources = value if isinstance(value, list) else [value] if value else []
        if value is not None and not any(source.weight for source in sources):
            raise ValueError(
                "all weights are 0: give at least one source a weight above 0"
                if sources
                else "must name a source, got []"
            )
        if about.field_name == "validation" and any(source.weight != 1 for source in sources):
            raise ValueError("weight is for training documents, and all held-out documents are read: leave weight out")
        return value

    @model_validator(mode="after")
    def check_stream(self) -> Data:
        """Refuse settings that do not work when documents are read as a stream.

        Raises:
            ValueError: data.train has a key that needs all documents or files at once, or sources that a part cannot
                have in the ratio of their weights.
        """
        if self.stream is None:
            return self
        sources = self.sources("train")
        if len(sources) > 1:
            self.check_parts(sources)
        for name, source in sources.items():
            keys = ("dataset", "separator", "interleave", "dilate")
            if given := [key for key in keys if getattr(source, key) is not None]:
                raise ValueError(
                    f"stream reads rows as they are and cannot apply {name}.{given[0]}: leave one of the two out"
                )
        return self

    def check_parts(self, sources: dict[str, Source]) -> None:
        """Check that the parts of a stream can have rows of several sources in the ratio of their weights.

        Raises:
            ValueError: they cannot.
        """
        if self.mix_by == "tokens":
            raise ValueError("stream mixes sources by their rows, not by tokens: set mix_by documents")
        whole = sum(source.weight for source in sources.values())
        for name, source in sources.items():
            if self.stream and self.stream * source.weight < FEWEST_ROWS * whole:
                raise ValueError(
                    f"stream {self.stream} has too few rows for the weight {source.weight:g} of {name}: raise it to "
                    f"{math.ceil(FEWEST_ROWS * whole / source.weight)} at least"
                )

    def sources(self, key: SourcesKey) -> dict[str, Source]:
        """Return the sources with a weight above 0 by name: ``data.train``, or for a list ``data.train.0`` and so on.

        Args:
            key: ``train`` or ``validation``.
        """
        value = getattr(self, key)
        named = (
            {f"data.{key}": value}
            if not isinstance(value, list)
            else {f"data.{key}.{number}": source for number, source in enumerate(value)}
        )
        return {name: source for name, source in named.items() if source is not None and source.weight}
