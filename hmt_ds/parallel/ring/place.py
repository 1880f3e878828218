"""Where a rank stands: its stage, its pipeline, and the channels to its neighbours."""

import contextlib
import io
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology, PipelineParallelGrid
from torch import Tensor

from hmt_ds.parallel.distributed import LostRank, rank, world_size

POSTED = 2  # messages that are waited for ahead of their use, on each channel


class Shape(NamedTuple):
    """What a message is."""

    size: tuple[int, ...]
    dtype: torch.dtype


class Channel:
    """Messages from one stage to another, first in, first out, on a communicator of their own.

    Sending does not wait. Receiving is begun ahead of its use, so that messages travel while a stage computes.
    """

    def __init__(self, sender: int, receiver: int, timeout: timedelta):
        name = f"hmt_ds {sender} -> {receiver}"
        self.group = dist.new_group([sender, receiver], timeout=timeout, group_desc=name)
        self.sender, self.receiver, self.timeout = sender, receiver, timeout
        self.sent: deque[tuple[Any, Tensor]] = deque()
        self.wanted: deque[Shape] = deque()
        self.posted: deque[tuple[Any, Tensor]] = deque()
        self.connect()

    def connect(self) -> None:
        """Let a first message go: NCCL's holds the hosts up until both ends are there. All connect in one order, while
        in a ring each stage would begin with waiting for the one before it."""
        first = torch.zeros(1, device=get_accelerator().current_device_name())
        if rank() == self.sender:
            dist.send(first, self.receiver, group=self.group)
        elif rank() == self.receiver:
            dist.recv(first, self.sender, group=self.group)

    def send(self, tensor: Tensor) -> None:
        """Let a message go; it must not be written into any more."""
        while self.sent and self.sent[0][0].is_completed():
            self.finish(*self.sent.popleft(), "take")
        tensor = tensor.detach().contiguous()
        self.sent.append((dist.isend(tensor, self.receiver, group=self.group), tensor))

    def expect(self, shapes: Sequence[Shape], device: torch.device) -> None:
        """Say which messages come next, in order."""
        self.wanted.extend(shapes)
        self.device = device
        self.post()

    def post(self) -> None:
        """Begin to receive the next ones."""
        while self.wanted and len(self.posted) < POSTED:
            shape = self.wanted.popleft()
            buffer = torch.empty(shape.size, dtype=shape.dtype, device=self.device)
            self.posted.append((dist.irecv(buffer, self.sender, group=self.group), buffer))

    def receive(self) -> Tensor:
        """The next message."""
        work, buffer = self.posted.popleft()
        self.finish(work, buffer, "send")
        self.post()
        return buffer

    def flush(self) -> None:
        """Wait until all that was sent has been taken."""
        while self.sent:
            self.finish(*self.sent.popleft(), "take")

    def finish(self, work: Any, message: Tensor, did_not: str) -> None:
        """Wait for a message.

        Raises:
            LostRank: if the neighbour is gone, or does not answer in time.
        """
        try:
            work.wait()
        except RuntimeError as error:
            other = self.sender if rank() == self.receiver else self.receiver
            said = str(error).strip().splitlines()[0].partition(". This is typically")[0]
            raise LostRank(f"rank {other} did not {did_not} what rank {rank()} waits for: {said}") from None


class Place:
    """A rank's stage and pipeline. Rank = stage x pipelines + pipeline: a node has ranks of few stages.

    Args:
        stages: P; the ranks must be a multiple of it.
        timeout_minutes: for how long a neighbour is waited for.
    """

    def __init__(self, stages: int, timeout_minutes: float):
        self.stages, self.pipelines = stages, world_size() // stages
        self.stage, self.pipeline = divmod(rank(), self.pipelines)
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints the topology
            self.grid = PipelineParallelGrid(PipeDataParallelTopology(num_pp=stages, num_dp=self.pipelines))
        limit = timedelta(minutes=timeout_minutes)
        mine: dict[str, Channel] = {}
        for pipeline in range(self.pipelines):
            ranks = [stage * self.pipelines + pipeline for stage in range(stages)]
            # the last is the ring; every rank takes part in making every group
            forward = [Channel(a, b, limit) for a, b in zip(ranks, ranks[1:] + ranks[:1], strict=True)]
            back = [Channel(b, a, limit) for a, b in zip(ranks, ranks[1:] + ranks[:1], strict=True)]
            ends = dist.new_group([ranks[0], ranks[-1]], timeout=limit)
            if pipeline == self.pipeline:
                self.ranks, self.ends = ranks, ends
                mine |= {"in": forward[self.stage - 1], "out": forward[self.stage]}
                mine |= {"back_in": back[self.stage], "back_out": back[self.stage - 1]}
        self.channels = mine

    @property
    def opens(self) -> bool:
        """Whether this is the first stage."""
        return self.stage == 0

    @property
    def closes(self) -> bool:
        """Whether this is the last stage."""
        return self.stage == self.stages - 1
