"""What a step's memory consists of: by the bytes of the tensors that are there, not by formula."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hmt_ds.distributed.deepspeed_internals import base_optimizer, gradient_tensors, master_buffers, weight_shard
from hmt_ds.parallel.activation_budget import outside_torch
from hmt_ds.parallel.zero import ZeroExecutor


def bytes_within(things: Any, device: torch.device, seen: set[int]) -> int:
    """Bytes on the device of all tensors within something nested; a storage counts once, and is then ``seen``."""
    if isinstance(things, Tensor):
        storage = things.untyped_storage()
        if things.device.type != device.type or storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if dataclasses.is_dataclass(things):  # DeepSpeed's buckets
        things = vars(things)
    if isinstance(things, dict):
        things = [*things.keys(), *things.values()]
    if isinstance(things, list | tuple | set):
        return sum(bytes_within(thing, device, seen) for thing in things)
    return 0


def parts(executor: ZeroExecutor) -> dict[str, int]:
    """Bytes of what stands on the device now, by what it is for."""
    module, optimizer = executor.engine.module, base_optimizer(executor.engine)
    own = [*module.parameters(), *executor.gradients.model.parameters()]  # the second are aliases; whole at ZeRO-3
    shards = [weight_shard(weight) for weight in own]
    in_groups = [weight for group in optimizer.param_groups for weight in group["params"]]
    masters = [*master_buffers(executor.engine), *in_groups]
    gradients = gradient_tensors(executor.engine)
    gradients += [getattr(executor.gradients, "sums", None), [tensor.grad for tensor in (*own, *masters)]]
    seen: set[int] = {0}  # tensors without a storage are at address 0
    device = executor.device
    return {
        "weights": bytes_within([own, shards, list(module.buffers())], device, seen),
        "gradients": bytes_within(gradients, device, seen),
        "optimizer_states": bytes_within([masters, optimizer.state], device, seen),
    }


class MemoryProbe:
    """The peak of each phase, and what stood there then. Give it to an executor as its ``phase``, for one step.

    Attributes:
        peaks: bytes, on GPUs.
        reserved: bytes that torch's allocator had at most, on GPUs.
        parts: bytes that stood at the borders of the phase, at most.
    """

    def __init__(self, executor: ZeroExecutor):
        self.executor, self.open = executor, ["other"]
        self.peaks: dict[str, int] = {}
        self.reserved = 0
        self.parts: dict[str, dict[str, int]] = {}
        if executor.device.type != "cpu":  # the peaks of earlier steps are not of this one
            torch.get_device_module(executor.device).reset_peak_memory_stats()
        self.note()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Around a part of the work."""
        self.note()
        self.open.append(name)
        self.note()
        try:
            yield
        finally:
            self.note()
            self.open.pop()
            self.note()

    def note(self) -> None:
        """What was there since the last note counts for the phase that is open."""
        name, found = self.open[-1], parts(self.executor)
        before = self.parts.setdefault(name, found)
        self.parts[name] = {part: max(size, before[part]) for part, size in found.items()}
        if self.executor.device.type != "cpu":
            cuda = torch.get_device_module(self.executor.device)
            self.peaks[name] = max(self.peaks.get(name, 0), cuda.max_memory_allocated())
            self.reserved = max(self.reserved, cuda.max_memory_reserved())
            cuda.reset_peak_memory_stats()


def graph_pools(device: torch.device) -> tuple[int, int]:
    """Bytes that CUDA graphs hold for their replays: all, and those that count as allocated besides."""
    taken = torch.get_device_module(device).memory_snapshot()
    segments = [segment for segment in taken if segment["segment_pool_id"] != (0, 0)]
    return sum(s["total_size"] for s in segments), sum(s["allocated_size"] for s in segments)


def footprint(probe: MemoryProbe, peak: int) -> dict[str, Any]:
    """The peak of the probed step and its parts, in bytes.

    The parts are those of the phase with the highest peak, for not all of them stand at all times. On CPUs nobody
    counts allocations: there they are what stood at most.

    Args:
        peak: of the timed steps, which may be deeper than the probed one; for CPUs, resident memory.
    """
    device, phases = probe.executor.device, probe.peaks
    if device.type == "cpu":
        most = {part: max(found[part] for found in probe.parts.values()) for part in probe.parts["other"]}
        named = {f"{part}_bytes": size for part, size in most.items()}
        return {"peak_bytes": peak, "peak_phase": None, **named, "cuda_graphs_bytes": None, "activations_bytes": None}
    held, counted = graph_pools(device)
    idle = held - counted  # between replays the allocator does not count what lies in graphs
    at = max(phases, key=lambda name: phases[name])
    phases[at] = max(phases[at], peak)
    named = {f"{part}_bytes": size for part, size in probe.parts[at].items()} | {"cuda_graphs_bytes": held}
    without_step = max(size for name, size in phases.items() if name not in ("reduce", "step")) + idle
    return {
        "peak_bytes": phases[at] + idle,
        "peak_phase": at,
        **named,
        "activations_bytes": phases[at] + idle - sum(named.values()),
        "phase_peak_bytes": {name: size + idle for name, size in phases.items()},
        "forward_backward_peak_bytes": without_step,
        "forward_backward_without_optimizer_bytes": without_step - named["optimizer_states_bytes"],
        "reserved_bytes": probe.reserved,
        "outside_bytes": outside_torch(device),
    }
