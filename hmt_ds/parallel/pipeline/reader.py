"""Evaluate a model that is divided into pipeline stages, without training it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from hmt_ds.memory import HMT, MemoryState, SegmentOutput, Window
from hmt_ds.parallel.build_engine import ExecutorOptions, build_reading_engine
from hmt_ds.parallel.pipeline.runner import StageRunner, hidden_size
from hmt_ds.parallel.pipeline.topology import Topology
from hmt_ds.parallel.train_step import empty_state


class PipelineReader:
    """Evaluates segments with one pipeline stage of an HMT model; the other stages are on other ranks.

    Args:
        model: stage of this rank, from :func:`hmt_ds.parallel.pipeline.build_stage.build_stage`.
        topology: stage and pipeline of this rank.
        options: the run's engine settings; of its ``compute`` settings only the kernels are used.
        micro_batches: number of micro-batches that the rows of a batch are split into.
    """

    def __init__(self, model: HMT, topology: Topology, options: ExecutorOptions, *, micro_batches: int):
        self.stages, self.reports = topology.stages, topology.is_last
        self.data_ranks, self.data_rank = topology.pipelines, topology.pipeline
        self.settings, self.embedding_width = model.settings, model.backbone.dim
        self.device, self.dtype = options.device, options.dtype
        self.autocast = options.autocast()
        # pipelines always reduce once per step, and the choice of kernels depends on it
        options = replace(options, compute=replace(options.compute, reduction="step"))
        self.engine = build_reading_engine(model, options, topology.grid)
        self.runner = StageRunner(topology, self.settings, micro_batches, hidden_size(model), self.dtype, self.device)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Evaluate a window (the next segments of every row), together with the other stages' ranks.

        Args:
            window: the next segments of every row, on the CPU.
            state: memories from earlier segments; None at the beginning of documents.
            options: ``mode`` (memory mode), ``instead`` (other memories to compute losses with as well: ``swapped``
                between rows, or ``none``) and ``by_token`` (a loss per token, not per row).

        Yields:
            The output of each segment, which has losses on the last stage only, and the memory state after the window.
        """
        state = state or empty_state(self, len(window.input_ids), self.settings.kept_memories)
        yield from self.runner.evaluate(self.engine.module, window, state, self.autocast, **options)
