"""Handle optimizer steps with a non-finite loss or gradient: count them, find their documents, roll back to a
checkpoint.

The optimizer skips such a step by itself; a run ends, or rolls back, after too many consecutive ones.
"""

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from hmt_ds.checkpoint import CheckpointError, newest_intact
from hmt_ds.data import Batch
from hmt_ds.distributed.process_group import all_gather_object, broadcast_object, rank
from hmt_ds.parallel.protocols import StepOutput

logger = logging.getLogger(__name__)

MAX_NAMED = 10  # documents in one line of the log
MAX_ROLLBACKS = 3  # to the same checkpoint
EXCLUDED_FILE = "left_out.json"


class TooManyBadSteps(RuntimeError):
    """Raised if too many consecutive steps had a non-finite loss or gradient and the run cannot roll back.

    The message tells the user what to do.
    """


class BadStepCounter:
    """Counts consecutive steps with a non-finite loss or gradient; every rank must report every step.

    Args:
        generated: whether the training documents are generated rather than read.
        sources: number of documents of each data source.

    Attributes:
        consecutive: non-finite steps since the last finite one.
        documents: indices of training documents that may have caused the non-finite steps.
    """

    def __init__(self, *, generated: bool = False, sources: Sequence[int] = ()) -> None:
        self.generated, self.ends = generated, list(accumulate(sources))
        self.consecutive, self.documents = 0, set[int]()
        self.last_rollback: tuple[Path | None, int] = None, 0  # the checkpoint, and how often the run went back to it

    def count(self, output: StepOutput, windows: Sequence[Batch]) -> str | None:
        """Add a step to the count if its loss or a gradient is not finite; otherwise set the count to 0.

        For a non-finite step all ranks must call it together.

        Args:
            output: the step's results.
            windows: this rank's batches of the step, with the indices of their documents.

        Returns:
            A message for the log if anything in the step was not finite, else None.
        """
        dropped = (
            f"rows whose memory was not finite, and is dropped: {output.reset_rows}" if output.reset_rows else None
        )
        if not output.bad:
            self.consecutive, self.documents = 0, set()
            return "the gradients overflowed, the step is skipped" if output.skipped else dropped
        found = suspects(output.finite, documents_of(windows))
        self.consecutive += 1
        self.documents |= found
        message = f"loss or gradients are not finite, the step is skipped; it read {self.name(found)}"
        return f"{message}; {dropped}" if dropped else message

    def roll_back(self, checkpoints: Path, *, allowed: bool) -> tuple[Path, set[int]]:
        """After too many consecutive non-finite steps, choose the checkpoint to return to, and reset the count.

        Args:
            checkpoints: folder of the run's checkpoints.
            allowed: whether the recipe allows to roll back (``training.on_bad_steps: rollback``).

        Returns:
            The checkpoint, and the indices of documents to exclude from then on.

        Raises:
            TooManyBadSteps: the run may not roll back, has no checkpoint, or has returned to the same one too often.
        """
        problem = (
            f"{self.consecutive} steps in a row had a loss or gradients that are not finite (training.max_bad_steps); "
            f"they read {self.name(self.documents)}"
        )
        if not allowed:
            way_out = "leave them out" if self.generated else "repair the documents named above, or leave them out"
            raise TooManyBadSteps(
                f"{problem}; {checkpoints} is unchanged: {way_out} with --training.on_bad_steps rollback "
                "--checkpoint.resume auto"
            )
        checkpoint = newest_intact(checkpoints, logger.warning)
        if checkpoint is None:
            way_out = "change training.seed, or optimizer.lr," if self.generated else "repair the named documents,"
            raise TooManyBadSteps(f"{problem}; there is no checkpoint to go back to: {way_out} and start again")
        before, times = self.last_rollback
        self.last_rollback = checkpoint, times + 1 if checkpoint == before else 1
        if self.last_rollback[1] > MAX_ROLLBACKS:
            raise TooManyBadSteps(
                f"{problem}; the run has gone back to {checkpoint} {MAX_ROLLBACKS} times, each time with fewer "
                "documents: look for another reason, such as optimizer.lr"
            )
        if rank() == 0:
            logger.warning("%s; back to %s, and on without them", problem, checkpoint)
        documents, self.documents, self.consecutive = self.documents, set(), 0
        return checkpoint, documents

    def name(self, documents: Iterable[int]) -> str:
        """Format indices of documents for a message, at most ten, ascending, such as ``documents 3, 17 of data.train``.

        Args:
            documents: indices of training documents.
        """
        every = sorted(documents)
        more = f" and {len(every) - MAX_NAMED} more" if len(every) > MAX_NAMED else ""
        named = f"document{'s' * (len(every) > 1)} {', '.join(map(self.name_one, every[:MAX_NAMED]))}{more}"
        if self.generated:
            return f"generated {named} of data.retrieval"
        several = len(self.ends) > 1
        return f"{named}{'' if several else ' of data.train'} (counted from 0, without blank ones)"

    def name_one(self, document: int) -> str:
        """Format the index of a training document for a message; with several data sources, as index and source.

        Args:
            document: index among the documents of all sources.
        """
        if len(self.ends) < 2:
            return str(document)
        source = bisect_right(self.ends, document)
        return f"{document - [0, *self.ends][source]} of data.train.{source}"


def documents_of(windows: Sequence[Batch]) -> torch.Tensor:
    """Return the indices of the documents in each segment of some batches, ``[rows, segments, documents]``.

    Lists of documents that are shorter than the longest one are filled up with -1.

    Args:
        windows: consecutive batches of the same rows.
    """
    every = [window.documents[:, :, None] for window in windows]
    every = [
        one if w.others is None else torch.cat([one, w.others], dim=2) for one, w in zip(every, windows, strict=True)
    ]
    most = max(one.shape[2] for one in every)
    return torch.cat([torch.nn.functional.pad(one, (0, most - one.shape[2]), value=-1) for one in every], dim=1)


def suspects(finite: torch.Tensor, documents: torch.Tensor) -> set[int]:
    """Return indices of the documents, of all ranks, that may have caused a step's non-finite loss or gradient.

    In each row it is the first document with a non-finite loss, which spreads to later documents of the row through the
    memory. If all losses are finite, and only a gradient is not, all documents of the step are suspects. All ranks must
    call it.

    Args:
        finite: ``[rows, segments]`` bool, whether the losses of this rank's rows are finite.
        documents: ``[rows, segments, documents]``, indices of the documents of each segment; -1 fills up shorter lists.
    """
    present = documents >= 0
    broken = ~finite.cpu() & present.any(dim=2)
    first = documents[torch.arange(len(documents)), broken.long().argmax(dim=1)][broken.any(dim=1)]
    own, every = zip(*all_gather_object((first[first >= 0].tolist(), documents[present].tolist())), strict=True)
    return {document for some in (own if any(own) else every) for document in some}


def read_excluded(folder: Path) -> list[int]:
    """Read the indices of the training documents that earlier rollbacks have excluded, the same on all ranks.

    All ranks must call it.

    Args:
        folder: the run's folder.

    Returns:
        Indices of training documents; an empty list if none were excluded.

    Raises:
        CheckpointError: on all ranks, if the file with the list cannot be read.
    """
    found: list[int] | str = []
    file = folder / EXCLUDED_FILE
    if rank() == 0 and file.exists():
        try:
            found = [int(document) for document in json.loads(file.read_text(encoding="utf-8"))["documents"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            found = f"{file} is not readable: {error}; repair it, or delete it to read all documents"
    found = broadcast_object(found)  # type: ignore[assignment]
    if isinstance(found, str):
        raise CheckpointError(found)
    return found


def write_excluded(folder: Path, documents: list[int]) -> None:
    """Write the indices of documents to exclude from now on into the run's folder, with one rename.

    Args:
        folder: the run's folder.
        documents: indices of training documents.
    """
    if rank() == 0:
        aside = folder / f".{EXCLUDED_FILE}"
        with aside.open("w", encoding="utf-8") as out:
            out.write(json.dumps({"documents": documents}))
            out.flush()
            os.fsync(out.fileno())
        aside.replace(folder / EXCLUDED_FILE)
