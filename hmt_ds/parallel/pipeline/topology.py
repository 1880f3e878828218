"""The stage and the pipeline that a rank belongs to, and its channels to the neighbouring stages."""

import contextlib
import io
import os
import socket
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology, PipelineParallelGrid

from hmt_ds.distributed.process_group import all_gather_object, rank, world_size
from hmt_ds.parallel.pipeline.p2p import Channel
from hmt_ds.parallel.pipeline.p2p_timeout import P2PTimeout


class StageChannels(NamedTuple):
    """The four channels of a pipeline stage: forward and backward, to and from its neighbours.

    The last stage's next stage is the first one: the last stage's ``forward_out``, which carries retrieved prompts, is
    the first stage's ``forward_in``; gradients of the prompts go back between the same two stages.

    Attributes:
        forward_in: activations or prompts from the previous stage.
        forward_out: activations or prompts to the next stage.
        backward_in: gradients from the next stage.
        backward_out: gradients to the previous stage.
    """

    forward_in: Channel
    forward_out: Channel
    backward_in: Channel
    backward_out: Channel


class Topology:
    """The stage and the pipeline of this rank, with its channels to neighbouring stages.

    Rank = stage x pipelines + pipeline: the ranks of a stage have consecutive numbers, so a node holds few stages.

    Args:
        stages: number of stages, which divides the number of ranks.
        timeout_minutes: minutes to wait for a message from a neighbouring stage.
    """

    channels: StageChannels

    def __init__(self, stages: int, timeout_minutes: float):
        self.stages, self.pipelines = stages, world_size() // stages
        self.stage, self.pipeline = divmod(rank(), self.pipelines)
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints the topology
            self.grid = PipelineParallelGrid(PipeDataParallelTopology(num_pp=stages, num_dp=self.pipelines))
        timeout = timedelta(minutes=timeout_minutes)
        self.posts_receives_early = get_accelerator().device_name() == "cpu"  # see Channel
        thread = None if self.posts_receives_early else P2PTimeout(timeout)
        machines = all_gather_object(os.environ.get("NCCL_HOSTID") or socket.gethostname())  # as NCCL tells them apart
        # creating a group is collective: every rank creates the groups of all pipelines, in one order
        for pipeline in range(self.pipelines):
            ranks = [stage * self.pipelines + pipeline for stage in range(stages)]
            # each stage and the next one; the last stage's next one is the first
            edges = [(a, b, machines[a] != machines[b]) for a, b in zip(ranks, ranks[1:] + ranks[:1], strict=True)]
            forward = [Channel(a, b, timeout, thread, across) for a, b, across in edges]
            backward = [Channel(b, a, timeout, thread, across) for a, b, across in edges]
            first_and_last = dist.new_group([ranks[0], ranks[-1]], timeout=timeout)
            if pipeline == self.pipeline:
                self.ranks, self.first_and_last = ranks, first_and_last
                previous, own = self.stage - 1, self.stage  # edges before and after this stage; -1 is the last one
                self.channels = StageChannels(forward[previous], forward[own], backward[own], backward[previous])

    @property
    def is_first(self) -> bool:
        """Whether this rank is on the first pipeline stage."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank is on the last pipeline stage."""
        return self.stage == self.stages - 1
