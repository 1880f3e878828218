"""Steps whose loss or gradients are not finite: what they read, how many came in a row, and what is left out for it."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from hmt_ds.checkpoint import CheckpointError, newest_intact
from hmt_ds.data import Batch
from hmt_ds.distributed.process_group import from_all_ranks, from_rank_0, rank
from hmt_ds.parallel.zero import StepOutput

NAMED = 10  # documents in a line
RETURNS = 3  # to one checkpoint


class BadSteps(RuntimeError):
    """So many steps were bad that the run does not go on; the message is for people."""


class BadStepCounter:
    """Counts bad steps that follow each other. All ranks tell it of every step.

    Attributes:
        in_a_row: how many have been bad, up to now.
        documents: what they read.
    """

    def __init__(self) -> None:
        self.in_a_row, self.documents = 0, set[int]()
        self.returns: tuple[Path | None, int] = None, 0

    def count(self, output: StepOutput, windows: list[Batch]) -> str | None:
        """Note a step.

        Returns:
            What there is to say of it, if it was not as it should be.
        """
        anew = f"rows whose memory was not finite, and is dropped: {output.anew}" if output.anew else None
        if not output.bad:
            self.in_a_row, self.documents = 0, set()
            return "the gradients overflowed, the step is skipped" if output.skipped else anew
        found = suspects(output.finite, torch.cat([window.documents for window in windows], dim=1))
        self.in_a_row += 1
        self.documents |= found
        said = f"loss or gradients are not finite, the step is skipped; it read {named(found)}"
        return f"{said}; {anew}" if anew else said

    def way_back(self, checkpoints: Path, *, rollback: bool, say: Callable[[str], None]) -> tuple[Path, set[int]]:
        """After too many in a row: the checkpoint to go back to, and what to leave out. Counting begins anew.

        Raises:
            BadSteps: if there is no going back.
        """
        said = (
            f"{self.in_a_row} steps in a row had a loss or gradients that are not finite (training.max_bad_steps); "
            f"they read {named(self.documents)}"
        )
        if not rollback:
            raise BadSteps(
                f"{said}; {checkpoints} is as it was: mend these documents, or go on without them by "
                "--training.on_bad_steps rollback --checkpoint.resume auto"
            )
        checkpoint = newest_intact(checkpoints, say)
        if checkpoint is None:
            raise BadSteps(f"{said}; there is no checkpoint to go back to: mend these documents, and begin anew")
        before, times = self.returns
        self.returns = checkpoint, times + 1 if checkpoint == before else 1
        if self.returns[1] > RETURNS:
            raise BadSteps(
                f"{said}; the run has gone back to {checkpoint} {RETURNS} times, each time without more documents: "
                "look for another reason, such as optimizer.lr"
            )
        say(f"{said}; back to {checkpoint}, and on without them")
        documents, self.documents, self.in_a_row = self.documents, set(), 0
        return checkpoint, documents


def suspects(finite: torch.Tensor, documents: torch.Tensor) -> set[int]:
    """The documents to which a bad step is laid, of all ranks: in each row the first whose loss is not finite.

    (What follows it in the row may have got it from there.) Where all losses are finite, all documents of the step.

    Args:
        finite: ``[rows, segments]`` bool, of the losses of this rank's rows.
        documents: ``[rows, segments]``, -1 where there is none.
    """
    read = documents >= 0
    broken = ~finite.cpu() & read
    first = documents.gather(1, broken.long().argmax(dim=1, keepdim=True))[broken.any(dim=1)]
    own, every = zip(*from_all_ranks((first.flatten().tolist(), documents[read].tolist())), strict=True)
    return {document for some in (own if any(own) else every) for document in some}


def named(documents: Iterable[int]) -> str:
    """Documents by their numbers: those of the plan, in the source's order."""
    every = sorted(documents)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    numbers = ", ".join(map(str, every[:NAMED]))
    return f"document{'s' * (len(every) > 1)} {numbers}{more} of data.train (counted from 0, without blank ones)"


def read_left_out(folder: Path) -> list[int]:
    """The documents that a run leaves out; the same on all ranks.

    Raises:
        CheckpointError: if the list cannot be read.
    """
    found: list[int] | str = []
    file = folder / "left_out.json"
    if rank() == 0 and file.exists():
        try:
            found = [int(document) for document in json.loads(file.read_text(encoding="utf-8"))["documents"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            found = f"{file} is not readable: {error}; mend it, or delete it to read all documents"
    found = from_rank_0(found)  # type: ignore[assignment]
    if isinstance(found, str):
        raise CheckpointError(found)
    return found


def write_left_out(folder: Path, documents: list[int]) -> None:
    """Keep the list for later starts; a killed process leaves the one before."""
    if rank() == 0:
        aside = folder / ".left_out.json"
        with aside.open("w", encoding="utf-8") as out:
            out.write(json.dumps({"documents": documents}))
            out.flush()
            os.fsync(out.fileno())
        aside.replace(folder / "left_out.json")
