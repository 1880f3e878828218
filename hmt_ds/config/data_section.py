"""The section ``data`` of a recipe: sources of documents, one or several that are mixed."""

from __future__ import annotations

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
from hmt_ds.data.settings import COLUMNS, NAMED, DatasetName, FormatName, RetrievalSettings


class Source(Section):
    """A source of documents: files, a saved data set, or a data set on the hub."""

    source: PathText
    """File, folder, or pattern such as data/*.jsonl.gz, of text (.txt, .md), .jsonl, .ndjson, .json, .csv, .parquet or
    .arrow, each also compressed (.gz, .zst); a saved Hugging Face data set; or the name of a data set on the hub. Also
    an address of files, such as s3://bucket/data/*.parquet or hf://datasets/NAME, whose files are copied to the cache
    of datasets. The log says what is left out of a folder."""
    format: FormatName = "text"
    """Content of a row. text: a document; completion: a prompt and its completion; messages: a conversation; questions:
    a document (context) with its question (input) and answers, or with a list of questions and one of answers."""
    dataset: DatasetName | None = None
    """Well-known data set whose columns the source has, in place of format and fields; hmt_ds/data/README.md lists the
    names that they have on the hub."""
    text_field: str = "text"
    """Column of the data set that holds the text of a document, for format text."""
    fields: dict[str, str] = Field({})
    """Columns of the data set for the other formats, where they have other names: {prompt: instruction} is column
    instruction for prompt. Formats have prompt and completion; messages; context, input and answers."""
    prompt_weight: float = Field(0.0, ge=0, le=1)
    """Weight in the loss of tokens outside answers, for formats other than text. 0: the loss is on answers alone; 1: on
    all tokens alike. Held-out losses are weighted in the same way."""
    chat_template: PathText | None = None
    """File with a chat template (Jinja) for format messages. Default: the tokenizer's own."""
    split: str = "train"
    """Split of the data set to read; part of one is written like train[:10%]. In a folder the files' names tell the
    split (train-00000-of-00002.parquet, dev.jsonl); if they tell only one or none, the folder is read whole, as train.
    """
    name: str | None = None
    """Configuration of a data set on the hub. Default: the only one; required if the data set has several."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub. Default: the newest. In an address: hf://datasets/NAME@REVISION."""
    separator: str | None = None
    """Regular expression for the first line of each document in a text file. Default: each file is one document."""

    interleave: int | None = Field(None, ge=1)
    """Number of tokens after which two documents take turns: documents are joined in pairs, which tests a memory with
    switching topics. Default: documents stay whole."""
    dilate: int | None = Field(None, ge=1)
    """Number of tokens after which as many tokens of filler are put into a document, which do not count in the loss.
    Default: none."""
    weight: float = Field(1.0, ge=0)
    """Share of the source in what is read, relative to the weights of the other sources of data.train; data.mix_by says
    whether of tokens or of documents. 0: the source is not read."""

    @model_validator(mode="after")
    def check_format(self) -> Source:
        """Refuse keys that the format does not use."""
        wanted = COLUMNS[self.format]
        if self.dataset and (self.format, self.fields, self.text_field, self.separator) != ("text", {}, "text", None):
            raise ValueError(
                f"format, fields, text_field and separator are known of dataset {self.dataset}: leave them out"
            )
        if self.row_format == "text" and (self.fields or self.prompt_weight):
            raise ValueError("fields and prompt_weight are for other formats than text (its column is text_field)")
        if unknown := [name for name in self.fields if name not in wanted]:
            raise ValueError(f"fields has {', '.join(unknown)}, but format {self.format} has {', '.join(wanted)}")
        columns = self.columns or {}
        if len(set(columns.values())) < len(columns):
            raise ValueError(f"fields names one column for several of {', '.join(wanted)}")
        if self.row_format != "messages" and self.chat_template:
            raise ValueError(f"chat_template is for format messages, not {self.row_format}: leave it out")
        if self.format != "text" and (self.text_field != "text" or self.separator):
            raise ValueError(f"text_field and separator are for format text, not {self.format}: leave them out")
        return self

    @property
    def row_format(self) -> FormatName:
        """The format of the rows: that of the data set, if one is named."""
        return NAMED[self.dataset].format if self.dataset else self.format

    @property
    def columns(self) -> dict[str, str] | None:
        """The column of the data set for each that is read; None for format text."""
        if self.dataset:
            return {name: name for name in NAMED[self.dataset].columns}
        return None if self.format == "text" else {name: self.fields.get(name, name) for name in COLUMNS[self.format]}


def one_or_several(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Validate a source or a list of sources, with errors of the one that is meant."""
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
    """Generated documents that state facts and ask for them in later segments (hmt_ds/data)."""


class Data(Section):
    """Training and held-out documents."""

    train: Sources = None
    """Training documents: a file, a folder or a data set, see data.train.source; or a list of such sources, which are
    mixed by their weights. Required without data.retrieval."""
    mix_by: Literal["tokens", "documents"] = "tokens"
    """What the weights of several sources are shares of: the tokens that are read, or the documents."""
    retrieval: Retrieval | None = None
    """Generated training documents, in place of data.train, that state facts and ask for them in later segments."""
    validation: Sources = None
    """Held-out documents, on which the loss is evaluated; of several sources, one behind the other. Default: no
    evaluation of the loss."""
    cache_dir: PathText = "runs/cache"
    """Folder to cache tokenized documents in. If each machine has its own folder of that name, each machine tokenizes
    the documents itself."""
    pack: bool = False
    """Let training documents share segments, so that less is padding: a document begins in the segment in which the one
    before it ends, if it fits there or has at least a quarter of the segment. Attention and memory keep documents
    apart. Held-out documents do not share segments."""
    workers: int = Field(0, ge=0, le=256)
    """Number of data loader processes per rank; 0 loads in the training process. The order of the data does not depend
    on it."""

    @field_validator("train", "validation")
    @classmethod
    def check_sources(cls, value: Source | list[Source] | None, about: ValidationInfo) -> Source | list[Source] | None:
        """Refuse a list without sources, weights that are all 0, and weights of held-out documents."""
        sources = value if isinstance(value, list) else [value] if value else []
        if value is not None and not any(source.weight for source in sources):
            raise ValueError("all weights are 0: give one source a larger one" if sources else "must name a source")
        if about.field_name == "validation" and any(source.weight != 1 for source in sources):
            raise ValueError("held-out documents are all read: leave weight out")
        return value

    def sources(self, key: SourcesKey) -> dict[str, Source]:
        """Return the sources that are read, by their names: ``data.train``, or ``data.train.0`` and so on in a list."""
        value = getattr(self, key)
        named = (
            {f"data.{key}": value}
            if not isinstance(value, list)
            else {f"data.{key}.{number}": source for number, source in enumerate(value)}
        )
        return {name: source for name, source in named.items() if source is not None and source.weight}
