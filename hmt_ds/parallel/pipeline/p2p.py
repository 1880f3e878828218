"""Point-to-point messages between neighbouring pipeline stages."""

import contextlib
from collections import deque
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from hmt_ds.distributed.process_group import LostRank, rank
from hmt_ds.parallel.pipeline.p2p_timeout import P2PTimeout

NCCL_LATER = timedelta(minutes=5)  # than the lookout, who says it better


class TensorSpec(NamedTuple):
    """What a message is."""

    size: tuple[int, ...]
    dtype: torch.dtype


class Channel:
    """Messages from one stage to another, first in, first out, on a communicator of their own.

    Sending does not wait. On a GPU receiving does not hold up the host either. There NCCL's kernels spin until a
    message comes: on multiprocessors that the layers' matrix products miss, and the host that loads a kernel, or frees
    memory, waits for them. So between GPUs of one machine a message is received when the device comes to its item; it
    lies in the receiver's buffers by then. Between machines it sets out only when it is asked for: there a stream of
    the channel's own receives as soon as the host comes to the item, while the device still computes. Gloo sends
    nothing before it is asked for either, and then takes a while.

    Args:
        lookout: on a GPU, which looks whether messages come.
        far: whether the two are on different machines.
    """

    def __init__(self, sender: int, receiver: int, timeout: timedelta, lookout: P2PTimeout | None, far: bool):
        name = f"hmt_ds {sender} -> {receiver}"
        limit = timeout + NCCL_LATER if lookout else timeout
        self.group = dist.new_group([sender, receiver], timeout=limit, group_desc=name)
        self.sender, self.receiver, self.lookout = sender, receiver, lookout
        self.sent: deque[tuple[Any, Tensor]] = deque()
        self.asked: deque[tuple[Any, Tensor]] = deque()
        self.device = torch.device(get_accelerator().current_device_name())
        self.stream = torch.Stream(self.device) if lookout and far else None
        self.connect()

    def connect(self) -> None:
        """Let a first message go: NCCL's holds the hosts up until both ends are there. All connect in one order, while
        in a ring each stage would begin with waiting for the one before it."""
        if rank() == self.sender:
            self.send(torch.zeros(1, device=self.device))
        elif rank() == self.receiver:
            self.receive(TensorSpec((1,), torch.float32))

    def send(self, tensor: Tensor) -> None:
        """Let a message go; it must not be written into any more."""
        while self.sent and self.sent[0][0].is_completed():
            self.finish(*self.sent.popleft())
        tensor = tensor.detach().contiguous()
        self.sent.append((dist.isend(tensor, self.receiver, group=self.group), tensor))

    def ask(self, shape: TensorSpec) -> None:
        """Let the next message come, before it is needed."""
        with self.stream or contextlib.nullcontext():
            buffer = torch.empty(shape.size, dtype=shape.dtype, device=self.device)
            self.asked.append((dist.irecv(buffer, self.sender, group=self.group), buffer))

    def receive(self, shape: TensorSpec) -> Tensor:
        """The next message."""
        if not self.asked:
            self.ask(shape)
        work, buffer = self.asked.popleft()
        self.finish(work, buffer)
        if self.stream is not None:
            buffer.record_stream(torch.accelerator.current_stream())
        return buffer

    def flush(self) -> None:
        """Wait until all that was sent has been taken."""
        while self.sent:
            self.finish(*self.sent.popleft())

    def finish(self, work: Any, message: Tensor) -> None:
        """Wait for a message; on a GPU, let the device wait, which computes nothing that comes later.

        Raises:
            LostRank: if the neighbour is gone, or does not answer in time.
        """
        if rank() == self.receiver:
            failure = f"rank {self.sender} did not send what rank {rank()} waits for"
        else:
            failure = f"rank {self.receiver} did not take what rank {rank()} has sent"
        try:
            work.wait()
        except RuntimeError as error:
            said = str(error).strip().splitlines()[0].partition(". This is typically")[0]
            raise LostRank(f"{failure}: {said}") from None
        if self.lookout:
            came = torch.Event(self.device)
            came.record()
            self.lookout.watch(came, failure)
