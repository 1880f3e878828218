"""Measure the parts of a training step's memory: weights, gradients, optimizer states, activations."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hmt_ds.distributed.deepspeed_internals import base_optimizer, gradient_tensors, master_buffers, weight_shard
from hmt_ds.parallel.activation_budget import outside_torch
from hmt_ds.parallel.protocols import Executor

Footprint = dict[str, int | str | dict[str, int] | None]  # by name, with its unit


def bytes_within(nested: object, device: torch.device, seen: set[int]) -> int:
    """Return the bytes of all tensors on a device within nested containers; tensors that share a storage count once.

    Args:
        nested: tensors, dataclasses, dicts, lists, tuples and sets, nested in any way.
        device: only tensors on devices of the same type (CPU, CUDA) count.
        seen: addresses of storages that were counted before and are left out; new ones are added to it.
    """
    if isinstance(nested, Tensor):
        storage = nested.untyped_storage()
        if nested.device.type != device.type or storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if dataclasses.is_dataclass(nested):  # DeepSpeed's buckets
        nested = vars(nested)
    if isinstance(nested, dict):
        nested = [*nested.keys(), *nested.values()]
    if isinstance(nested, list | tuple | set):
        return sum(bytes_within(thing, device, seen) for thing in nested)
    return 0


def memory_by_use(executor: Executor) -> dict[str, int]:
    """Return the bytes on the executor's device by use: ``weights``, ``gradients`` and ``optimizer_states``."""
    module, optimizer = executor.engine.module, base_optimizer(executor.engine)
    # the second tree's weights are aliases of the first one's, except at ZeRO-3, where they are gathered
    own = [*module.parameters(), *executor.gradients.model.parameters()]
    shards = [weight_shard(weight) for weight in own]
    in_groups = [weight for group in optimizer.param_groups for weight in group["params"]]
    masters = [*master_buffers(executor.engine), *in_groups]
    gradients = gradient_tensors(executor.engine)
    gradients += [getattr(executor.gradients, "sums", None), [tensor.grad for tensor in (*own, *masters)]]
    seen: set[int] = {0}  # the address of tensors without a storage
    device = executor.device
    return {
        "weights": bytes_within([own, shards, list(module.buffers())], device, seen),
        "gradients": bytes_within(gradients, device, seen),
        "optimizer_states": bytes_within([masters, optimizer.state], device, seen),
    }


class MemoryProbe:
    """Records the memory of each phase of a training step (``forward``, ``backward``, ...); assigned to an executor as
    ``phase``.

    Attributes:
        peaks: peak allocated bytes by phase, on GPUs.
        reserved: peak bytes that torch's allocator reserved, on GPUs.
        uses: bytes of weights, gradients and optimizer states by phase: the largest found when the phase began or
            ended.
    """

    def __init__(self, executor: Executor):
        self.executor, self.open = executor, ["other"]
        self.peaks: dict[str, int] = {}
        self.reserved = 0
        self.uses: dict[str, dict[str, int]] = {}
        if executor.device.type != "cpu":  # forget the peaks of earlier steps
            torch.get_device_module(executor.device).reset_peak_memory_stats()
        self.record()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Record the memory of the phase ``name``, which is the body of a ``with`` statement."""
        self.record()
        self.open.append(name)
        self.record()
        try:
            yield
        finally:
            self.record()
            self.open.pop()
            self.record()

    def record(self) -> None:
        """Assign the peak memory since the previous call to the phase of the training step that is now running.

        If phases are nested, it is the innermost one.
        """
        name, found = self.open[-1], memory_by_use(self.executor)
        before = self.uses.setdefault(name, found)
        self.uses[name] = {use: max(size, before[use]) for use, size in found.items()}
        if self.executor.device.type != "cpu":
            cuda = torch.get_device_module(self.executor.device)
            self.peaks[name] = max(self.peaks.get(name, 0), cuda.max_memory_allocated())
            self.reserved = max(self.reserved, cuda.max_memory_reserved())
            cuda.reset_peak_memory_stats()


def graph_pools(device: torch.device) -> tuple[int, int]:
    """Return the memory of CUDA graphs, which torch keeps in pools of its own.

    Args:
        device: a GPU.

    Returns:
        Bytes of all pools, and how many of them torch's allocator counts as allocated.
    """
    blocks = torch.get_device_module(device).memory_snapshot()
    pools = [block for block in blocks if block["segment_pool_id"] != (0, 0)]
    return sum(pool["total_size"] for pool in pools), sum(pool["allocated_size"] for pool in pools)


def footprint(probe: MemoryProbe, peak: int) -> Footprint:
    """Return the peak memory of a training step and its parts (weights, gradients, ...), in bytes.

    The parts are those of the phase with the highest peak, because they do not all exist at all times. On CPUs torch
    does not count allocations: there each part is the largest that was found.

    Args:
        probe: the memory of each phase of one training step.
        peak: peak bytes of the timed steps, which may have more segments; on CPUs, resident memory.
    """
    device, phases = probe.executor.device, probe.peaks
    if device.type == "cpu":
        most = {use: max(found[use] for found in probe.uses.values()) for use in probe.uses["other"]}
        named = {f"{use}_bytes": size for use, size in most.items()}
        return {"peak_bytes": peak, "peak_phase": None, **named, "cuda_graphs_bytes": None, "activations_bytes": None}
    held, counted = graph_pools(device)
    uncounted = held - counted  # between replays the allocator does not count the memory of graphs
    at = max(phases, key=lambda name: phases[name])
    phases[at] = max(phases[at], peak)
    named = {f"{use}_bytes": size for use, size in probe.uses[at].items()} | {"cuda_graphs_bytes": held}
    forward_backward = max(size for name, size in phases.items() if name not in ("reduce", "step")) + uncounted
    return {
        "peak_bytes": phases[at] + uncounted,
        "peak_phase": at,
        **named,
        # whatever deepspeed_internals.gradient_tensors and master_buffers miss counts as activations
        "activations_bytes": phases[at] + uncounted - sum(named.values()),
        "phase_peak_bytes": {name: size + uncounted for name, size in phases.items()},
        "forward_backward_peak_bytes": forward_backward,
        "forward_backward_without_optimizer_bytes": forward_backward - named["optimizer_states_bytes"],
        "reserved_bytes": probe.reserved,
        "outside_bytes": outside_torch(device),
    }
