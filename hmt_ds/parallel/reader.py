"""Evaluate a model at ZeRO stages 0 to 3, without training it."""

from collections.abc import Iterator
from typing import Any

import torch

from hmt_ds.distributed.process_group import rank, world_size
from hmt_ds.memory import HMT, MemoryState, SegmentOutput, Window, read_window
from hmt_ds.parallel.build_engine import ExecutorOptions, build_reading_engine
from hmt_ds.parallel.train_step import empty_state


class ZeroReader:
    """Evaluates documents, segment by segment, with a model in a DeepSpeed engine at ZeRO stage 0 to 3.

    Args:
        model: a model from :func:`hmt_ds.parallel.build_hmt.build_hmt`.
        options: the run's engine settings; of its ``compute`` settings only the kernels are used.
    """

    stages, reports = 1, True

    def __init__(self, model: HMT, options: ExecutorOptions):
        self.settings, self.embedding_width = model.settings, model.backbone.dim
        self.device, self.dtype = options.device, options.dtype
        self.data_ranks, self.data_rank = world_size(), rank()
        self.engine = build_reading_engine(model, options)

    @torch.no_grad()
    def read(
        self, window: Window, state: MemoryState | None, **options: Any
    ) -> Iterator[tuple[SegmentOutput, MemoryState]]:
        """Evaluate a window (the next segments of every row) without training.

        Args:
            window: the next segments of every row, on the CPU.
            state: memories from earlier segments; None at the beginning of documents.
            options: ``mode`` (memory mode), ``instead`` (other memories to compute losses with as well: ``swapped``
                between rows, or ``none``), ``by_token`` (a loss per token, not per row) and ``with_logits``.

        Yields:
            The output of each segment, and the memory state after it.
        """
        state = state or empty_state(self, len(window.input_ids))
        yield from read_window(self.engine, self.settings, window.to(self.device), state, **options)
