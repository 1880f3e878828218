"""A rank's stage and pipeline, and its channels to the neighbouring stages."""

import contextlib
import io
import os
import socket
from datetime import timedelta

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology, PipelineParallelGrid

from hmt_ds.distributed.process_group import from_all_ranks, rank, world_size
from hmt_ds.parallel.pipeline.p2p import Channel
from hmt_ds.parallel.pipeline.p2p_timeout import P2PTimeout


class Topology:
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
        self.asks_ahead = get_accelerator().device_name() == "cpu"  # on GPUs: see Channel
        machines = from_all_ranks(os.environ.get("NCCL_HOSTID") or socket.gethostname())  # as NCCL tells them apart
        lookout = None if self.asks_ahead else P2PTimeout(limit)
        mine: dict[str, Channel] = {}
        for pipeline in range(self.pipelines):
            ranks = [stage * self.pipelines + pipeline for stage in range(stages)]
            # the last is the ring; every rank takes part in making every group
            ways = [(a, b, machines[a] != machines[b]) for a, b in zip(ranks, ranks[1:] + ranks[:1], strict=True)]
            forward = [Channel(a, b, limit, lookout, far) for a, b, far in ways]
            back = [Channel(b, a, limit, lookout, far) for a, b, far in ways]
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
