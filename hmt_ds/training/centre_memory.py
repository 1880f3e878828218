"""Initialize the shift of memory embeddings from the mean of the memories that the untrained model writes.

Most of a memory is common to all segments of all documents. With ``memory.interface: adapted``, memories are embedded
as P = scale * norm(M) + shift, which without the right shift would start as far from the mean token embedding as that
common part is long. Subtracting the common part lets P start around the mean token embedding, and the backbone sees
what differs between memories.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hmt_ds.backbones import read_converted
from hmt_ds.checkpoint.fragments import WEIGHT, fragments
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.deepspeed_internals import refresh_weights
from hmt_ds.distributed.process_group import all_reduce_sum
from hmt_ds.memory import MemoryState, RandomState, Window
from hmt_ds.memory.prompts import normalized
from hmt_ds.parallel.protocols import Executor
from hmt_ds.reporting.log import log_seconds

logger = logging.getLogger(__name__)


def has_new_shift(recipe: Recipe) -> bool:
    """Return whether a run starts with an untrained shift of memory embeddings (P = scale * norm(M) + shift).

    This is so with ``memory.interface: adapted``, unless the run starts from a model that was trained with a memory.

    Args:
        recipe: the recipe of the run.
    """
    memory, converted = recipe.memory, read_converted(recipe.model.source)
    trained = converted is not None and converted["memory"]["mode"] != "backbone"
    return memory.interface == "adapted" and memory.mode != "backbone" and not trained


def centre_memory(executor: Executor, windows: Iterable[Window]) -> None:
    """Initialize the shift of memory embeddings to minus scale * mu, mu the mean normalized memory of some segments.

    Nothing else changes: neither the memory that the executor carries nor its random state. All ranks must call it.

    Args:
        executor: the untrained model in its engine.
        windows: this rank's rows of consecutive segments, in windows of any length, on the CPU.
    """
    with log_seconds(logger, "centring the memory"):
        random = RandomState(executor.device)
        total, count = sum_memories(executor, windows)
        random.restore()
        scale = torch.zeros_like(total)
        # each element of the scale is on exactly one rank, so the sum over the ranks is the whole scale
        for place, values in weight_parts(executor, "memory_embedding.scale", to_write=True):
            scale[place] = values.to(scale)
        width = executor.embedding_width
        total, count, scale = all_reduce_sum(torch.cat([total, count, scale])).split([width, 1, width])
        offset = scale * total / count.clamp(min=1)
        for place, values in weight_parts(executor, "memory_embedding.shift", to_write=False):
            values.sub_(offset[place].to(values))
        refresh_weights(executor.engine)


def sum_memories(executor: Executor, windows: Iterable[Window]) -> tuple[Tensor, Tensor]:
    """Read segments without gradients, and sum the normalized memories that the model writes.

    Memories that are not finite are left out.

    Args:
        executor: the model in its engine.
        windows: this rank's rows of consecutive segments, in windows of any length, on the CPU.

    Returns:
        The sum over this rank's memories ``[dim]`` and their number ``[1]``, both float64; 0 on pipeline stages without
        memories.
    """
    total = torch.zeros(executor.embedding_width, dtype=torch.float64, device=executor.device)
    count = torch.zeros_like(total[:1])
    state: MemoryState | None = None
    # one segment at a time: a pipeline yields no memories but those that are left after the whole window
    for segment in (segment for window in windows for segment in segments_of(window)):
        [(_, state)] = executor.read(segment, state)
        if executor.reports:
            newest = state.memories[:, -1]
            found = newest[state.valid[:, -1] & newest.isfinite().flatten(1).all(dim=1)].flatten(0, 1)
            total += normalized(found.double()).sum(dim=0)
            count += len(found)
    return total, count


def segments_of(window: Window) -> Iterator[Window]:
    """Split a window of several segments into windows of one segment each, and yield them in order.

    Args:
        window: consecutive segments of every row.
    """
    tensors = {name: tensor for name, tensor in vars(window).items() if tensor is not None}
    for n in range(len(window)):
        yield replace(window, **{name: tensor[:, n : n + 1] for name, tensor in tensors.items()})


def weight_parts(executor: Executor, name: str, *, to_write: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield this rank's parts of a weight, each as its slice of the flattened weight and its values (float32).

    Args:
        executor: the model in its engine.
        name: name of the weight.
        to_write: yield each element on exactly one rank, as for a checkpoint; otherwise on each rank that holds it.
    """
    ranks = {"rank": executor.data_rank, "world_size": executor.data_ranks}
    for part in fragments(executor.engine, **ranks, to_write=to_write):
        if part.name == name:
            yield slice(part.start, part.start + part.numel), part.tensors[WEIGHT]
