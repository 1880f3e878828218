"""The options of `hmt-ds evaluate SOURCE --tasks ...` and of `hmt-ds tasks`.

Imports no torch: the command line builds its help from this module.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options, WholeNumber, flag
from hmt_ds.config.recipe import PathText
from hmt_ds.config.sections import STRICT
from hmt_ds.config.value_checks import check_picture

TaskName = Literal["passkey", "babilong-qa1", "babilong-qa2", "babilong-qa3", "babilong-qa4", "babilong-qa5"]
ReadingName = Literal["memory", "swapped", "empty", "truncated", "full"]
RANGE = re.compile(r"(.*?)(\d)\.\.(\d)")


def split(texts: object) -> object:
    """Split texts at commas, and expand ``qa1..5``, into a tuple without repetitions."""
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
    """The options of `hmt-ds evaluate` that concern generated tasks."""

    tasks: Annotated[tuple[TaskName, ...], "NAMES", Split] = ()
    """ask questions about generated documents instead: passkey, babilong-qa1 to babilong-qa5 (babilong-qa1..5); of a
    run, a checkpoint or a converted folder"""
    questions: Annotated[FilePath | None, "FILE"] = None
    """ask the questions of a .jsonl file instead, with the keys context, input and answers, as in LongBench"""
    lengths: Annotated[tuple[AtLeastOne, ...], "N,N", Split] = (4096,)
    """with --tasks: tokens of the documents"""
    answer_tokens: AtLeastOne = 16
    """when asking: largest number of tokens of an answer"""
    readings: Annotated[tuple[ReadingName, ...], "NAMES", Split] = ("memory", "swapped", "empty")
    """when asking: memory; swapped: with another document's memories; empty: with none; truncated and full: the
    backbone alone, with the last tokens that a segment holds, or with all of them"""
    samples: Annotated[AtLeastOne, Field(ge=2)] = 50
    """with --tasks: documents of each task and length"""
    batch: Annotated[AtLeastOne, Field(ge=2)] = 8
    """when asking: documents that are read together"""
    seed: Annotated[WholeNumber, Field(ge=0)] = 0
    """with --tasks: other documents"""
    json: Annotated[FilePath | None, "FILE"] = None
    """when asking: file to write every answer to"""
    picture: Annotated[FilePath | None, "FILE", AfterValidator(lambda file: file and check_picture(file))] = None
    """with --tasks: heat map of length against place, as .png, .svg or .pdf"""
    tokenizer: Annotated[PathText | None, "DIR"] = None
    """when asking: folder or hub name of the tokenizer; default: the source's own"""
    dtype: Literal["bf16", "fp32"] | None = None
    """when asking: type of the weights; default: the folder's own, or the type that the run computed in"""

    @property
    def asks(self) -> bool:
        """Whether anything is asked, so that held-out losses are not measured."""
        return bool(self.tasks or self.questions)

    def conflicts(self) -> list[str]:
        """Return a line for options that do nothing alone, for a missing file, and for one that cannot be written."""
        if not self.asks:
            default = TaskOptions()
            given = [name for name in vars(default) if getattr(self, name) != getattr(default, name)]
            return [f"{flag(name)}: only with --tasks or --questions" for name in given]
        if self.tasks and self.questions:
            return ["--questions: not together with --tasks"]
        if self.questions and not self.questions.is_file():
            return [f"--questions: {self.questions} is not a file"]
        if self.json and (self.json.is_dir() or not self.json.absolute().parent.is_dir()):
            return [f"--json: {self.json} cannot be written: give a file in an existing folder"]
        return []


@dataclass(frozen=True, config=STRICT)
class WriteOptions(Options):
    """The options of `hmt-ds tasks`."""

    output: Annotated[FilePath | None, "FILE"] = None
    """new .jsonl file to write; required"""
    tokenizer: Annotated[PathText | None, "DIR"] = None
    """folder or hub name of the tokenizer that counts tokens; required"""
    lengths: Annotated[tuple[AtLeastOne, ...], "N,N", Split] = (4096,)
    """tokens of the documents, in turn"""
    documents: AtLeastOne = 1000
    """number of documents of each task"""
    seed: Annotated[WholeNumber, Field(ge=0)] = 0
    """other documents"""

    def conflicts(self) -> list[str]:
        """Return a line for each required option that is missing, and for a file that exists."""
        problems = [f"--{name}: missing" for name in ("output", "tokenizer") if getattr(self, name) is None]
        if self.output and (self.output.suffix != ".jsonl" or self.output.exists()):
            problems.append(f"--output: {self.output} exists already, or does not end in .jsonl")
        if self.output and not Path(self.output).absolute().parent.is_dir():
            problems.append(f"--output: the folder of {self.output} does not exist")
        return problems
