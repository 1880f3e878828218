"""The options of `hmt-ds generate` and `hmt-ds chat`.

Imports no torch: the command line builds its help from this module.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options, WholeNumber
from hmt_ds.config.recipe import PathText
from hmt_ds.config.sections import STRICT


@dataclass(frozen=True, config=STRICT)
class ChatOptions(Options):
    """The options of `hmt-ds chat`, and of both commands."""

    tokenizer: Annotated[PathText | None, "DIR"] = None
    """folder or hub name of the tokenizer; default: the source's own"""
    document: Annotated[FilePath | None, "FILE"] = None
    """text file that is read first, of any length"""
    memory: Annotated[FilePath | None, "FILE"] = None
    """memory file of --save-memory: what was read then is not read again"""
    save_memory: Annotated[FilePath | None, "FILE"] = None
    """file to write the memory to: of generate after the document, of chat at the end"""
    max_new_tokens: AtLeastOne = 200
    """largest number of tokens of an answer, over any number of segments"""
    seed: Annotated[WholeNumber, Field(ge=0)] = 0
    """seed of sampling"""
    dtype: Literal["bf16", "fp32"] | None = None
    """type of the weights; default: the folder's own, or the type that the run computed in"""

    def conflicts(self) -> list[str]:
        """Return a line for each file that is missing, or that would be written over."""
        given = {"--document": self.document, "--memory": self.memory}
        problems = [f"{name}: {file} is not a file" for name, file in given.items() if file and not file.is_file()]
        if self.save_memory:
            problems += why_not_new("--save-memory", self.save_memory)
        return problems


@dataclass(frozen=True, config=STRICT)
class GenerateOptions(ChatOptions):
    """The options of `hmt-ds generate`."""

    prompt: Annotated[tuple[str, ...], "TEXT"] = ()
    """text to continue, behind the document and the memory; can be repeated"""
    prompts: Annotated[FilePath | None, "FILE"] = None
    """text file with one prompt per line"""
    batch: AtLeastOne = 8
    """number of prompts that are continued together"""

    def conflicts(self) -> list[str]:
        """Return a line for each file that does not fit, and one if there is nothing to do."""
        problems = super().conflicts()
        if self.prompts and not self.prompts.is_file():
            problems.append(f"--prompts: {self.prompts} is not a file")
        if not (self.prompt or self.prompts or self.document or self.memory):
            problems.append("nothing to continue: give --prompt TEXT, --document FILE or --memory FILE")
        return problems


def why_not_new(option: str, file: FilePath) -> list[str]:
    """Return a line if a file exists already, or its folder does not."""
    if file.exists():
        return [f"{option}: {file} exists already: name a new file"]
    return [] if file.absolute().parent.is_dir() else [f"{option}: the folder of {file} does not exist"]
