"""The options of `hmt-ds generate` and `hmt-ds chat`.

Imports no torch: the command line builds its help from this module.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from hmt_ds.config.options import AtLeastOne, FilePath, Options, WholeNumber
from hmt_ds.config.sections import STRICT, PathText


@dataclass(frozen=True, config=STRICT)
class ChatOptions(Options):
    """Options of `hmt-ds chat`, all of which `hmt-ds generate` has too; each field's docstring is its help text."""

    tokenizer: Annotated[PathText | None, "DIR"] = None
    """folder or hub name of the tokenizer (default: the one stored with the model or named in its recipe)"""
    document: Annotated[FilePath | None, "FILE"] = None
    """UTF-8 text file of any length that the model reads into its memory before the first prompt (default: none)"""
    memory: Annotated[FilePath | None, "FILE"] = None
    """file written by --save-memory, to start from a document's memory without reading the document again (default:
    none)"""
    save_memory: Annotated[FilePath | None, "FILE"] = None
    """new file to write the memory to, after the document is read or when the conversation ends; a later generate or
    chat starts from it with --memory FILE (default: not saved)"""
    max_new_tokens: AtLeastOne = 200
    """largest number of tokens to generate for each prompt or turn; they may span several segments"""
    seed: Annotated[WholeNumber, Field(ge=0)] = 0
    """seed of random sampling; the same seed and prompt give the same text"""
    dtype: Literal["bf16", "fp32"] | None = None
    """dtype to load the weights in (default: the dtype of a converted folder, or the model.precision of a run)"""

    def conflicts(self) -> list[str]:
        """Return an error line for each input file that is missing, and for an output file that cannot be created."""
        given = {"--document": self.document, "--memory": self.memory}
        problems = [
            f"{name}: {file} is not a file: name one that exists"
            for name, file in given.items()
            if file and not file.is_file()
        ]
        if self.save_memory:
            problems += why_not_new("--save-memory", self.save_memory)
        return problems


@dataclass(frozen=True, config=STRICT)
class GenerateOptions(ChatOptions):
    """Options of `hmt-ds generate`, with those of `hmt-ds chat`; each field's docstring is its help text."""

    prompt: Annotated[tuple[str, ...], "TEXT"] = ()
    """text to continue, after --document or --memory if given; can be repeated (default: continue the document itself)
    """
    prompts: Annotated[FilePath | None, "FILE"] = None
    """UTF-8 text file with one prompt per line, in addition to --prompt (default: none)"""
    batch: AtLeastOne = 8
    """largest number of prompts continued together in one batch; more is faster and takes more memory"""
    ranks: AtLeastOne = 1
    """number of ranks on this machine, one per GPU, that divide a run's weights among them, for a model too large for
    one (default: 1, which holds all weights)"""

    def conflicts(self) -> list[str]:
        """Return an error line for each missing input or existing output, and one if there is nothing to continue."""
        problems = super().conflicts()
        if self.prompts and not self.prompts.is_file():
            problems.append(f"--prompts: {self.prompts} is not a file: name one with a prompt per line")
        if not (self.prompt or self.prompts or self.document or self.memory):
            problems.append("nothing to continue: give --prompt TEXT, --document FILE or --memory FILE")
        if self.ranks > 1 and (self.memory or self.save_memory):
            problems.append(f"--ranks {self.ranks}: memory files need one rank: leave --memory and --save-memory out")
        return problems


def why_not_new(option: str, file: FilePath) -> list[str]:
    """Return an error line if a file to write exists already or its folder does not; an empty list otherwise.

    Args:
        option: name of the command-line option, with which the line begins.
        file: the file.
    """
    if file.exists():
        return [f"{option}: {file} exists already: name a new file"]
    return (
        []
        if file.absolute().parent.is_dir()
        else [f"{option}: the folder of {file} does not exist: create it, or name another file"]
    )
