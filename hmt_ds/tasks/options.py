"""The options of `hmt-ds evaluate SOURCE --tasks ...` and of `hmt-ds tasks`.

Imports no torch: the command line builds its help from this module.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options, WholeNumber, flag
from hmt_ds.config.sections import STRICT, PathText
from hmt_ds.config.value_checks import check_picture
from hmt_ds.data.settings import TaskName

ReadingName = Literal["memory", "swapped", "empty", "truncated", "full"]
RANGE = re.compile(r"(.*?)(\d)\.\.(\d)")


def split(texts: object) -> object:
    """Split texts at commas, expand ranges and drop repetitions: ``["a1..3,b"]`` becomes ``("a1", "a2", "a3", "b")``.

    Args:
        texts: a list or tuple of texts; anything else is returned unchanged.
    """
    if not isinstance(texts, list | tuple):
        return texts
    parts: list[object] = []
    for part in (part.strip() for text in texts for part in str(text).split(",")):
        found = RANGE.fullmatch(part)
        parts += [f"{found[1]}{n}" for n in range(int(found[2]), int(found[3]) + 1)] if found else [part]
    return tuple(dict.fromkeys(parts))


Split = BeforeValidator(split)


@dataclass(frozen=True, config=STRICT)
class TaskOptions(Options):
    """Options of `hmt-ds evaluate` that ask questions about documents; each field's docstring is its help text."""

    tasks: Annotated[tuple[TaskName, ...], "NAMES", Split] = ()
    """ask questions about generated documents, instead of measuring held-out losses: one or more of passkey and
    babilong-qa1 to babilong-qa5, separated by commas or as babilong-qa1..5"""
    questions: Annotated[FilePath | None, "FILE"] = None
    """ask the questions of a .jsonl file, instead of measuring held-out losses; its lines have the keys context, input
    and answers, as in LongBench"""
    lengths: Annotated[tuple[AtLeastOne, ...], "N,N", Split] = (4096,)
    """with --tasks: length of the generated documents in tokens, or several lengths separated by commas"""
    answer_tokens: AtLeastOne = 16
    """with --tasks or --questions: largest number of tokens to generate for an answer"""
    readings: Annotated[tuple[ReadingName, ...], "NAMES", Split] = ("memory", "swapped", "empty")
    """with --tasks or --questions: how documents are read, separated by commas. memory: with their own memories;
    swapped: with another document's memories; empty: without memories; truncated: by the backbone alone, only the last
    tokens, as many as fit into a segment; full: by the backbone alone, all tokens"""
    samples: Annotated[AtLeastOne, Field(ge=2)] = 50
    """with --tasks: number of documents for each task and length, at least 2"""
    batch: Annotated[AtLeastOne, Field(ge=2)] = 8
    """with --tasks or --questions: number of documents in a batch, at least 2; more is faster and takes more memory"""
    seed: Annotated[WholeNumber, Field(ge=0)] = 0
    """with --tasks: seed of the generated documents; the same seed gives the same documents"""
    json: Annotated[FilePath | None, "FILE"] = None
    """with --tasks or --questions: JSON file to write all answers and scores to (default: not written)"""
    picture: Annotated[FilePath | None, "FILE", AfterValidator(lambda file: file and check_picture(file))] = None
    """with --tasks: picture file (.png, .svg or .pdf) for a heat map of right answers by document length and by
    place of the fact in the document (default: not drawn)"""
    tokenizer: Annotated[PathText | None, "DIR"] = None
    """with --tasks or --questions: folder or hub name of the tokenizer (default: the one stored with the model or
    named in its recipe)"""
    dtype: Literal["bf16", "fp32"] | None = None
    """with --tasks or --questions: dtype of the loaded weights (default: that of a converted folder, or the precision
    of a run)"""

    @property
    def asks(self) -> bool:
        """Whether questions are asked (--tasks or --questions) instead of measuring held-out losses."""
        return bool(self.tasks or self.questions)

    def conflicts(self) -> list[str]:
        """Return an error line for each option that has no effect, contradicts another or names a file that cannot be
        used.
        """
        if not self.asks:
            default = TaskOptions()
            given = [name for name in vars(default) if getattr(self, name) != getattr(default, name)]
            return [f"{flag(name)}: only with --tasks or --questions: add one of them, or remove it" for name in given]
        if self.tasks and self.questions:
            return [f"--questions {self.questions} cannot be used together with --tasks: give one of them"]
        if self.questions and not self.questions.is_file():
            return [f"--questions: {self.questions} is not a file: name a .jsonl file"]
        if self.json and (self.json.is_dir() or not self.json.absolute().parent.is_dir()):
            return [f"--json: {self.json} cannot be written: give a file in an existing folder"]
        return []


@dataclass(frozen=True, config=STRICT)
class WriteOptions(Options):
    """Options of `hmt-ds tasks`, which writes generated documents; each field's docstring is its help text."""

    output: Annotated[FilePath | None, "FILE"] = None
    """new .jsonl file to write the documents to; required"""
    tokenizer: Annotated[PathText | None, "DIR"] = None
    """folder or hub name of the tokenizer that counts the documents' tokens; required"""
    lengths: Annotated[tuple[AtLeastOne, ...], "N,N", Split] = (4096,)
    """length of the documents in tokens; of several lengths, separated by commas, each document takes the next one"""
    documents: AtLeastOne = 1000
    """number of documents to write for each task"""
    seed: Annotated[WholeNumber, Field(ge=0)] = 0
    """seed of the generated documents; the same seed gives the same documents"""

    def conflicts(self) -> list[str]:
        """Return an error line for each required option that is missing, and for an output file that cannot be made."""
        problems = [
            f"--{name}: missing: give --{name} {'FILE' if name == 'output' else 'FOLDER'}"
            for name in ("output", "tokenizer")
            if getattr(self, name) is None
        ]
        if self.output and (self.output.suffix != ".jsonl" or self.output.exists()):
            problems.append(
                f"--output: {self.output} exists already, or does not end in .jsonl: name a new .jsonl file"
            )
        if self.output and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"--output: the folder of {self.output} does not exist: create it, or name another file")
        return problems
