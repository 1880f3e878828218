"""Write checkpoints: each rank writes its own share, optionally in a thread while training continues."""

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
    RUN_STATE,
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
from hmt_ds.checkpoint.run_state import RunPosition, run_state
from hmt_ds.checkpoint.staging import Staging
from hmt_ds.distributed.process_group import all_gather_object, all_reduce_sum, rank, world_size
from hmt_ds.parallel.protocols import Executor

logger = logging.getLogger(__name__)

FILE_BYTES = 2**31  # approximate size at which a new file of fragments is started
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints of a run are kept when a new one is written.

    Attributes:
        newest: number of newest checkpoints to keep; None for all.
        milestones: also keep checkpoints whose step is a multiple of this number; None for no others.
    """

    newest: int | None = None
    milestones: int | None = None


class Saver:
    """Writes a run's checkpoints. Methods that communicate must be called by all ranks at the same step.

    Args:
        folder: folder of all checkpoints, on a file system that all ranks share.
        identity: settings that a resumed run must have in common with the checkpoint, by recipe key.
        retention: which checkpoints are kept.
        background: whether to write in a thread, from copies in host memory, while training continues.
        alive: called for each part of a checkpoint that is written or copied, so that the watchdog sees progress.
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
        """Start to save a checkpoint: write this rank's share, or copy the share to host memory for a thread that
        writes it.

        Errors are kept for :meth:`finish`, which all ranks call: a rank that raised an error here would let the others
        hang.

        Args:
            executor: the model in its engine, which is saved.
            position: how far the run has come: its step, and its position in the data.
        """
        assert self.target is None, "the previous checkpoint is not finished"
        self.target, self.problem = self.folder / f"step_{position.step:06d}", None
        if rank() == 0:
            self.attempt(start_partial, self.target)
        # the all-reduce in failed() is also the barrier after which every rank may write into the folder
        if not self.failed():
            self.attempt(self.write, self.target, executor, position)

    def write(self, target: Path, executor: Executor, position: RunPosition) -> None:
        """Write this rank's share of a checkpoint, or copy the share and start a thread that writes it.

        Args:
            target: final path of the checkpoint.
            executor: the model in its engine, which is saved.
            position: how far the run has come: its step, and its position in the data.
        """
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
        """Yield the parts of weights and optimizer states that this rank writes to a checkpoint.

        Args:
            executor: the model in its engine, which is saved.
        """
        ranks = {"rank": executor.data_rank, "world_size": executor.data_ranks}
        for part in fragments(executor.engine, **ranks, to_write=True):
            self.alive(f"saving {part.name}")
            yield part

    def copied(self, parts: Iterable[Fragment]) -> list[Fragment]:
        """Copy parts of weights and optimizer states to host memory, so that training can change the originals.

        Args:
            parts: fragments, whose tensors are views of the model's.

        Returns:
            Fragments of the copies.
        """
        self.staging.begin()
        copies = [replace(p, tensors={key: self.staging.copy(t) for key, t in p.tensors.items()}) for p in parts]
        self.staging.wait()
        return copies

    def attempt(
        self, action: Callable[Arguments, object], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> None:
        """Call a function, and keep its error, such as a full disk, for :meth:`finish` to raise.

        Only the first error is kept; all ranks then raise it together.

        Args:
            action: the function.
            arguments, options: its positional and keyword arguments.
        """
        try:
            action(*arguments, **options)
        except Exception as error:  # file systems and safetensors raise errors of many types
            said = str(error).strip().splitlines() or [type(error).__name__]
            self.problem = self.problem or f"rank {rank()}: {said[0]}"

    def failed(self) -> bool:
        """Return whether any rank has had an error while saving. All ranks must call it."""
        problems = torch.tensor([float(self.problem is not None)], device=communication_device())
        return bool(all_reduce_sum(problems).item())

    def written(self) -> int:
        """Return 1 if this rank has written its share of a checkpoint that was begun and is not finished, else 0."""
        return int(self.target is not None and not (self.writer and self.writer.is_alive()))

    def finish(self) -> Path | None:
        """Wait until all ranks have written their share of the checkpoint, make it visible, and delete old ones.

        All ranks must call it.

        Returns:
            The checkpoint's path; None if no checkpoint was begun.

        Raises:
            CheckpointError: any rank could not write; earlier checkpoints are unchanged.
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
            cure = "earlier checkpoints are unchanged: resume once this is mended"
            raise CheckpointError(f"{target} was not written: {problem}; {cure}")
        # old checkpoints are deleted only now that the new one is there
        if rank() == 0:
            self.delete_old(target)
        return target

    def complete(self, target: Path) -> None:
        """Merge all ranks' lists of files into manifest.json and make the checkpoint visible; called on rank 0 only.

        Args:
            target: final path of the checkpoint.
        """
        entries: Entries = {}
        for number in range(world_size()):
            file = partial_path(target) / entries_file(number)
            entries |= json.loads(file.read_text())
            file.unlink()
        publish(target, entries)

    def delete_old(self, target: Path) -> None:
        """Delete a run's checkpoints that its retention settings do not keep; log a failure as a warning.

        Args:
            target: the checkpoint that was just written; it is kept.
        """
        try:
            delete_old(target, self.retention.newest, self.retention.milestones)
        except OSError as error:
            logger.warning("old checkpoints could not be deleted: %s", error)


def entries_file(number: int) -> str:
    """Return the name of the temporary file in which a rank lists its files of a checkpoint.

    Args:
        number: number of the rank.
    """
    return f"entries_{number:05d}.json"


def communication_device() -> torch.device:
    """Return the device whose tensors the process group's backend can send: the GPU for NCCL, else the CPU."""
    on_gpu = torch.distributed.is_initialized() and "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def write_share(
    target: Path, parts: Iterable[Fragment], own: tuple[dict[str, Tensor], dict[str, str]], state: str
) -> None:
    """Write this rank's files of a checkpoint and a list of the files; rank 0 also writes ``progress.json``.

    Args:
        target: final path of the checkpoint; files are written into its hidden folder.
        parts: fragments of weights and optimizer states.
        own: the rank's memories of the documents being read and its random states, as tensors by name and texts by
            name.
        state: content of ``progress.json``, as JSON.
    """
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
    """Write parts of weights and of optimizer states into one safetensors file.

    Args:
        group: the fragments.
        file: path of the file.
    """
    tensors = {f"{key}/{f.name}@{f.start}": t.detach().cpu() for f in group for key, t in f.tensors.items()}
    # one entry for all shapes: safetensors writes several entries in random order
    save_file(tensors, file, metadata={"shapes": json.dumps({f.name: f.shape for f in group})})


def file_groups(parts: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    """Group parts of weights into files of about the same number of bytes each; yield the parts of each file.

    Args:
        parts: fragments of weights and optimizer states.
    """
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
