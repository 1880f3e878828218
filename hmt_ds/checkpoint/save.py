"""Writing a checkpoint: every rank its own share, while training goes on if wanted."""

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hmt_ds.checkpoint.files import CheckpointError, begin, discard, partial_of, prune, seal, write_file, write_json
from hmt_ds.checkpoint.fragments import Fragment, ensure_states, fragments, scalars
from hmt_ds.checkpoint.rank_state import rank_file, rank_tensors, write_rank
from hmt_ds.checkpoint.staging import Staging
from hmt_ds.distributed.deepspeed_internals import counters, loss_scaler_state
from hmt_ds.distributed.process_group import add_up, from_all_ranks, rank, world_size
from hmt_ds.parallel.zero import ZeroExecutor

FILE_BYTES = 2**31  # of one file of fragments, about


@dataclass(frozen=True)
class RunPosition:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        tokens: fresh tokens read by all ranks.
        position: the data plan's state after the last window (None at the very start).
    """

    step: int = 0
    tokens: int = 0
    position: dict[str, Any] | None = None


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        newest: how many of the newest; None for all.
        milestones: those whose step is a multiple of this stay too.
    """

    newest: int | None = None
    milestones: int | None = None


class Saver:
    """Writes a run's checkpoints. All ranks call each method at the same step.

    Args:
        folder: of all checkpoints, seen by all ranks.
        identity: what a run must have in common with the checkpoint to go on from it; see :func:`check_identity`.
        background: write in a thread; what is written is copied to the host's memory first.
        alive: is called for each part of a checkpoint that is written, or copied.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        keeping: Retention,
        *,
        background: bool = False,
        alive: Callable[[str], None] = lambda after: None,
    ):
        self.folder, self.identity, self.keeping, self.background = folder, identity, keeping, background
        self.alive = alive
        self.target: Path | None = None
        self.writer: threading.Thread | None = None
        self.staging = Staging()
        self.problem: str | None = None

    def begin(self, executor: ZeroExecutor, progress: RunPosition) -> None:
        """Start to write; in the background, return when all is copied to the host. What fails, :meth:`finish` says."""
        assert self.target is None, "finish the one before"
        self.target, self.problem = self.folder / f"step_{progress.step:06d}", None
        if rank() == 0:
            self.attempt(begin, self.target)
        if not self.failed():
            self.attempt(self.write, self.target, executor, progress)

    def write(self, target: Path, executor: ZeroExecutor, progress: RunPosition) -> None:
        """Write this rank's share, or copy it and let a thread write."""
        if executor.engine.zero_optimization_stage() == 0:
            ensure_states(executor.engine)  # where every step up to now was skipped, there are none
        parts = self.parts(executor)
        own = rank_tensors(executor.state, executor.device)
        # as text, at once: the steps to come change what it is made of
        state = json.dumps(state_of(executor, progress) | {"identity": self.identity}, indent=1)
        if not self.background:
            return write_share(target, parts, own, state)
        work = (write_share, target, self.copied(parts), own, state)
        self.writer = threading.Thread(target=self.attempt, args=work, daemon=True)
        return self.writer.start()

    def parts(self, executor: ZeroExecutor) -> Iterator[Fragment]:
        """What this rank has to write."""
        ranks = {"rank": executor.data_rank, "world_size": executor.data_ranks}
        for part in fragments(executor.engine, **ranks, to_write=True):
            self.alive(f"saving {part.name}")
            yield part

    def copied(self, parts: Iterable[Fragment]) -> list[Fragment]:
        """Copies on the host that later steps do not change."""
        self.staging.begin()
        copies = [replace(p, tensors={key: self.staging.copy(t) for key, t in p.tensors.items()}) for p in parts]
        self.staging.wait()
        return copies

    def attempt(self, action: Any, *arguments: Any) -> None:
        """Do something that a full disk can stop; what went wrong is kept for later."""
        try:
            action(*arguments)
        except Exception as error:  # whatever a file system or a library makes of it
            said = str(error).strip().splitlines() or [type(error).__name__]
            self.problem = self.problem or f"rank {rank()}: {said[0]}"

    def failed(self) -> bool:
        """Whether anything has gone wrong on any rank; the same on all."""
        problems = torch.tensor([float(self.problem is not None)], device=device_of_ranks())
        return bool(add_up(problems).item())

    def written(self) -> int:
        """1 if this rank has nothing left to write for the checkpoint that was begun, else 0."""
        return int(self.target is not None and not (self.writer and self.writer.is_alive()))

    def finish(self) -> Path | None:
        """When all ranks have written: make the checkpoint visible. Waits for them; returns its path.

        Raises:
            CheckpointError: if any rank could not write; the checkpoints before are as they were.
        """
        if self.target is None:
            return None
        if self.writer:
            self.writer.join()
        target, self.target, self.writer = self.target, None, None
        if not self.failed() and rank() == 0:
            self.attempt(self.complete, target)
        if self.failed():
            if rank() == 0:
                discard(target)
            problem = next(filter(None, from_all_ranks(self.problem)))
            raise CheckpointError(f"{target} was not written: {problem}; the checkpoints before it are untouched")
        if rank() == 0:
            self.tidy(target)
        return target

    def complete(self, target: Path) -> None:
        """Rank 0 gathers the ranks' entries, and makes the checkpoint visible."""
        entries: dict[str, dict[str, Any]] = {}
        for number in range(world_size()):
            file = partial_of(target) / entries_file(number)
            entries |= json.loads(file.read_text())
            file.unlink()
        seal(target, entries)

    def tidy(self, target: Path) -> None:
        """Delete old checkpoints; if that cannot be done, the new one is there all the same."""
        try:
            prune(target, self.keeping.newest, self.keeping.milestones)
        except OSError as error:
            print(f"warning: old checkpoints could not be deleted: {error}", file=sys.stderr, flush=True)


def entries_file(number: int) -> str:
    """Where a rank tells rank 0 what it has written."""
    return f"entries_{number:05d}.json"


def device_of_ranks() -> torch.device:
    """Where the ranks' tensors are for an exchange."""
    on_gpu = torch.distributed.is_initialized() and "nccl" in torch.distributed.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def write_share(
    target: Path,
    parts: Iterable[Fragment],
    own: tuple[dict[str, Tensor], dict[str, str]],
    state: str,
) -> None:
    """Write this rank's files, and a list of them; rank 0 also what is the same on all."""
    folder, entries = partial_of(target), {}
    for number, group in enumerate(groups_of(parts)):
        name = f"fragments_{rank():05d}_{number:03d}.safetensors"
        tensors = {f"{key}/{f.name}@{f.start}": t.detach().cpu() for f in group for key, t in f.tensors.items()}
        shapes = {"shapes": json.dumps({f.name: f.shape for f in group})}  # one entry: of several the order is random
        write = lambda file, tensors=tensors, shapes=shapes: save_file(tensors, file, metadata=shapes)  # noqa: E731
        index = {"fragments": [[f.name, f.start, f.numel, list(f.tensors), list(f.shape)] for f in group]}
        entries[name] = write_file(folder / name, write) | index
    entries[rank_file(rank())] = write_file(folder / rank_file(rank()), lambda file: write_rank(file, *own))
    if rank() == 0:
        entries["progress.json"] = write_file(folder / "progress.json", lambda file: file.write_text(state))
    write_json(folder / entries_file(rank()), entries)


def groups_of(parts: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    """Fragments that go into one file each time."""
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


def state_of(executor: ZeroExecutor, progress: RunPosition) -> dict[str, Any]:
    """What is the same on all ranks."""
    engine = executor.engine
    rows = 0 if executor.state is None else len(executor.state.valid)
    return asdict(progress) | {
        "world_size": world_size(),
        "stages": executor.stages,
        "rows_per_rank": rows,
        "zero_stage": engine.zero_optimization_stage(),
        "optimizer": scalars(engine),
        "schedule": engine.lr_scheduler.state_dict() if engine.lr_scheduler else None,
        "loss_scaler": loss_scaler_state(engine),
        "counters": counters(engine),
    }
