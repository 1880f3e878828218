"""Point-to-point messages between pipeline stages."""

import contextlib
from collections import deque
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from hmt_ds.distributed.process_group import LostRank, rank
from hmt_ds.parallel.pipeline.p2p_timeout import P2PTimeout

NCCL_GRACE = timedelta(minutes=5)  # NCCL's own timeout comes later than P2PTimeout, whose message names the rank


class TensorSpec(NamedTuple):
    """Shape and dtype of a message between pipeline stages, which the receiver must know in advance.

    Attributes:
        size: the shape.
        dtype: the dtype.
    """

    size: tuple[int, ...]
    dtype: torch.dtype


class InFlight(NamedTuple):
    """A send or receive between ranks that was posted and may not have completed.

    Attributes:
        work: torch's handle of the operation.
        tensor: the sent or received tensor, which must stay alive until completion.
    """

    work: dist.Work
    tensor: Tensor


class Channel:
    """One-way channel for messages from one pipeline stage to another, first in, first out, with its own communicator.

    Sends do not block. When a receive is posted depends on the backend:

    - gloo transfers nothing before the receive is posted: all receives of a pass over some segments are posted first.
    - NCCL on one machine: posted when the device needs the message. A receive kernel posted earlier spins on
    multiprocessors that matrix products could use, and loading a kernel or freeing memory waits until it ends. The
    message is in the receiver's buffers by then.
    - NCCL across machines transfers nothing before the receive is posted. A side stream posts it when the host reaches
    the pass that needs the message, while the device still computes earlier passes.

    Args:
        timeout_thread: watches for messages that do not arrive; None on CPUs, where gloo's own timeout applies.
        across_machines: whether sender and receiver are on different machines.
    """

    def __init__(
        self, sender: int, receiver: int, timeout: timedelta, timeout_thread: P2PTimeout | None, across_machines: bool
    ):
        name = f"hmt_ds {sender} -> {receiver}"
        limit = timeout + NCCL_GRACE if timeout_thread else timeout
        self.group = dist.new_group([sender, receiver], timeout=limit, group_desc=name)
        self.sender, self.receiver, self.timeout_thread = sender, receiver, timeout_thread
        self.sends: deque[InFlight] = deque()
        self.receives: deque[InFlight] = deque()
        self.device = torch.device(get_accelerator().current_device_name())
        self.side_stream = torch.Stream(self.device) if timeout_thread and across_machines else None
        self.connect()

    def connect(self) -> None:
        """Exchange a first message, with which NCCL creates the connection; blocks both hosts until it exists.

        All ranks connect their channels in the same order. Connecting through the first messages of training would
        deadlock: each stage would block on the stage before it, and the first stage on the last.
        """
        if rank() == self.sender:
            self.send(torch.zeros(1, device=self.device))
        elif rank() == self.receiver:
            self.receive(TensorSpec((1,), torch.float32))

    def send(self, tensor: Tensor) -> None:
        """Send a tensor to the receiving stage without blocking; the caller must not write to the tensor afterwards.

        Args:
            tensor: the message.
        """
        while self.sends and self.sends[0].work.is_completed():
            self.wait(self.sends.popleft())
        tensor = tensor.detach().contiguous()
        self.sends.append(InFlight(posted(dist.isend(tensor, self.receiver, group=self.group)), tensor))

    def post_receive(self, spec: TensorSpec) -> None:
        """Post the receive of the next message, so that it can arrive while this stage computes.

        Args:
            spec: shape and dtype of the message.
        """
        with self.side_stream or contextlib.nullcontext():
            buffer = torch.empty(spec.size, dtype=spec.dtype, device=self.device)
            self.receives.append(InFlight(posted(dist.irecv(buffer, self.sender, group=self.group)), buffer))

    def receive(self, spec: TensorSpec) -> Tensor:
        """Return the next message from the sending stage; on CPUs the host waits for it, on GPUs only the device's
        stream does.

        Args:
            spec: shape and dtype of the message.

        Raises:
            LostRank: if the neighbouring stage has exited or does not respond in time.
        """
        if not self.receives:
            self.post_receive(spec)
        message = self.receives.popleft()
        self.wait(message)
        if self.side_stream is not None:
            # the buffer was allocated on the side stream: the allocator must know that this one reads it too
            message.tensor.record_stream(torch.accelerator.current_stream())
        return message.tensor

    def flush(self) -> None:
        """Wait until all sends that were posted through this channel have completed."""
        while self.sends:
            self.wait(self.sends.popleft())

    def wait(self, message: InFlight) -> None:
        """Wait for a posted send or receive: on CPUs the host waits, on GPUs only the device's stream does.

        Args:
            message: the posted send or receive.

        Raises:
            LostRank: if the neighbouring stage has exited or does not respond in time.
        """
        if rank() == self.receiver:
            failure = f"rank {self.sender} did not send what rank {rank()} waits for"
        else:
            failure = f"rank {self.receiver} did not take what rank {rank()} has sent"
        try:
            message.work.wait()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0].partition(". This is typically")[0]
            raise LostRank(f"{failure}: {reason}") from None
        if self.timeout_thread:
            arrived = torch.Event(self.device)
            arrived.record()
            self.timeout_thread.watch(arrived, failure)


def posted(work: dist.Work | None) -> dist.Work:
    """Return the handle of a posted send or receive unchanged, for type checkers: torch declares it as possibly None.

    Args:
        work: torch's handle of the operation.
    """
    assert work is not None
    return work
