"""Writing a checkpoint: each rank writes its own share, if wanted in the background while training continues."""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ParamSpec

import torch
from safetensors.torch import save_file
from torch import Tensor

from hmt_ds.checkpoint.files import (
    CheckpointError,
    Entries,
    delete_old,
    discard_partial,
    partial_path,
    publish,
    start_partial,
    write_file,
    write_json,
)
from hmt_ds.checkpoint.fragments import Fragment, create_states, fragments
from hmt_ds.checkpoint.rank_state import rank_file, rank_tensors, write_rank
from hmt_ds.checkpoint.run_state import RUN_STATE, RunPosition, run_state
from hmt_ds.checkpoint.staging import Staging
from hmt_ds.distributed.process_group import all_gather_object, all_reduce_sum, rank, world_size
from hmt_ds.parallel.protocols import Executor

logger = logging.getLogger(__name__)

FILE_BYTES = 2**31  # approximate size at which a new file of fragments is started
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept.

    Attributes:
        newest: number of newest checkpoints to keep; None for all.
        milestones: also keep checkpoints whose step is a multiple of this.
    """

    newest: int | None = None
    milestones: int | None = None


class Saver:
    """Writes a run's checkpoints. Every method that communicates is called by all ranks at the same step.

    Args:
        folder: of all checkpoints, on a file system that all ranks share.
        identity: what a resumed run must have in common with the checkpoint; see :func:`check_identity`.
        retention: which checkpoints are kept.
        background: write in a thread, from copies in the host's memory.
        alive: called for each part of a checkpoint that is written or copied, for the watchdog.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, object],
        retention: Retention,
        *,
        background: bool = False,
        alive: Callable[[str], None] = lambda after: None,
    ):
        self.folder, self.identity, self.retention, self.background = folder, identity, retention, background
        self.alive = alive
        self.target: Path | None = None
        self.writer: threading.Thread | None = None
        self.staging = Staging()
        self.problem: str | None = None

    def begin(self, executor: Executor, position: RunPosition) -> None:
        """Start a checkpoint: write this rank's share, or copy it for a thread that writes it.

        Errors are kept for :meth:`finish`, where all ranks meet: a rank that raised here would let the others wait.
        """
        assert self.target is None, "the previous checkpoint is not finished"
        self.target, self.problem = self.folder / f"step_{position.step:06d}", None
        if rank() == 0:
            self.attempt(start_partial, self.target)
        # the all-reduce in failed() is also the barrier after which every rank may write into the folder
        if not self.failed():
            self.attempt(self.write, self.target, executor, position)

    def write(self, target: Path, executor: Executor, position: RunPosition) -> None:
        """Write this rank's share now, or copy it for a thread that writes it."""
        if executor.engine.zero_optimization_stage() == 0:
            create_states(executor.engine)  # no optimizer states exist if every step so far was skipped
        parts = self.parts(executor)
        own = rank_tensors(executor.state, executor.device)
        # serialized at once: following steps change the objects that it is made of
        state = json.dumps(run_state(executor, position, self.identity), indent=1)
        if not self.background:
            return write_share(target, parts, own, state)
        # training may go on as soon as the copies are made: the thread reads nothing else
        job = partial(self.attempt, write_share, target, self.copied(parts), own, state)
        self.writer = threading.Thread(target=job, daemon=True)
        return self.writer.start()

    def parts(self, executor: Executor) -> Iterator[Fragment]:
        """Yield the fragments that this rank writes."""
        ranks = {"rank": executor.data_rank, "world_size": executor.data_ranks}
        for part in fragments(executor.engine, **ranks, to_write=True):
            self.alive(f"saving {part.name}")
            yield part

    def copied(self, parts: Iterable[Fragment]) -> list[Fragment]:
        """Copy fragments into staging memory on the host."""
        self.staging.begin()
        copies = [replace(p, tensors={key: self.staging.copy(t) for key, t in p.tensors.items()}) for p in parts]
        self.staging.wait()
        return copies

    def attempt(
        self, action: Callable[Arguments, object], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> None:
        """Call a function that may fail, for example on a full disk, and keep the first error for :meth:`finish`."""
        try:
            action(*arguments, **options)
        except Exception as error:  # file systems and safetensors raise errors of many types
            said = str(error).strip().splitlines() or [type(error).__name__]
            self.problem = self.problem or f"rank {rank()}: {said[0]}"

    def failed(self) -> bool:
        """Return whether any rank has had an error, by an all-reduce."""
        problems = torch.tensor([float(self.problem is not None)], device=communication_device())
        return bool(all_reduce_sum(problems).item())

    def written(self) -> int:
        """Return 1 if this rank has written its share of the checkpoint that was begun, else 0."""
        return int(self.target is not None and not (self.writer and self.writer.is_alive()))

    def finish(self) -> Path | None:
        """Wait until all ranks have written, make the checkpoint visible, and return its path.

        Raises:
            CheckpointError: if any rank could not write; earlier checkpoints are unchanged.
        """
        if self.target is None:
            return None
        if self.writer:
            self.writer.join()
        target, self.target, self.writer = self.target, None, None
        # All shares are on the disk once the all-reduce in failed() says that no rank has failed; only then may the
        # folder be renamed.
        if not self.failed() and rank() == 0:
            self.attempt(self.complete, target)
        # rank 0 may have failed in completing it: all ranks have to learn that
        if self.failed():
            if rank() == 0:
                discard_partial(target)
            problem = next(filter(None, all_gather_object(self.problem)))
            raise CheckpointError(f"{target} was not written: {problem}; earlier checkpoints are unchanged")
        # old checkpoints are deleted only now that the new one is there
        if rank() == 0:
            self.delete_old(target)
        return target

    def complete(self, target: Path) -> None:
        """Collect all ranks' entries into the manifest and make the checkpoint visible (only rank 0)."""
        entries: Entries = {}
        for number in range(world_size()):
            file = partial_path(target) / entries_file(number)
            entries |= json.loads(file.read_text())
            file.unlink()
        publish(target, entries)

    def delete_old(self, target: Path) -> None:
        """Delete old checkpoints; a failure is a warning, because the new one is complete."""
        try:
            delete_old(target, self.retention.newest, self.retention.milestones)
        except OSError as error:
            logger.warning("old checkpoints could not be deleted: %s", error)


def entries_file(number: int) -> str:
    """Return the name of the file in which a rank tells rank 0 what it has written."""
    return f"entries_{number:05d}.json"


def communication_device() -> torch.device:
    """Return the device on which tensors have to be for the process group's backend."""
    on_gpu = torch.distributed.is_initialized() and "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def write_share(
    target: Path, parts: Iterable[Fragment], own: tuple[dict[str, Tensor], dict[str, str]], state: str
) -> None:
    """Write this rank's files and a list of them; rank 0 also writes the state that all ranks share."""
    folder = partial_path(target)
    entries: Entries = {}
    for number, group in enumerate(file_groups(parts)):
        name = f"fragments_{rank():05d}_{number:03d}.safetensors"
        entries[name] = write_file(folder / name, partial(write_fragments, group))
        entries[name]["fragments"] = [(f.name, f.start, f.numel, list(f.tensors), list(f.shape)) for f in group]
    entries[rank_file(rank())] = write_file(folder / rank_file(rank()), lambda file: write_rank(file, *own))
    if rank() == 0:
        entries[RUN_STATE] = write_file(folder / RUN_STATE, lambda file: file.write_text(state))
    # last, after all files that it lists are flushed
    write_json(folder / entries_file(rank()), entries)


def write_fragments(group: list[Fragment], file: Path) -> None:
    """Write fragments into a safetensors file."""
    tensors = {f"{key}/{f.name}@{f.start}": t.detach().cpu() for f in group for key, t in f.tensors.items()}
    # one entry for all shapes: safetensors writes several entries in random order
    save_file(tensors, file, metadata={"shapes": json.dumps({f.name: f.shape for f in group})})


def file_groups(parts: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    """Group fragments by the file that they go into."""
    group: list[Fragment] = []
    size = 0
    for part in parts:
        group.append(part)
        size += sum(tensor.numel() * tensor.element_size() for tensor in part.tensors.values())
        if size >= FILE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
