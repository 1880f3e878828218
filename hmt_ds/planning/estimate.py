"""Estimate one layout of a run over GPUs: memory, seconds of an optimizer step, tokens per second."""

from dataclasses import dataclass

from hmt_ds.planning.cluster import Fleet
from hmt_ds.planning.flops import useful_flops_per_token
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.memory_parts import Memory, memory_of
from hmt_ds.planning.pipeline_plan import pipeline_estimate
from hmt_ds.planning.step_time import StepTime, step_time


@dataclass(frozen=True)
class Estimate:
    """The estimated optimizer step of a run in one layout over GPUs.

    Attributes:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.
        memory: memory of the fullest GPU and of a host.
        time: time of the step.
    """

    work: Work
    layout: Layout
    fleet: Fleet
    memory: Memory
    time: StepTime

    @property
    def tokens_per_second(self) -> float:
        """Tokens read per second and GPU; tokens repeated from the previous segment are not counted."""
        return self.work.tokens / self.time.seconds / self.fleet.count

    @property
    def useful_flops(self) -> float:
        """FLOPs of an optimizer step over all GPUs, without recomputation and attention scores."""
        size = self.work.size
        return useful_flops_per_token(size.parameters, size.trained, self.work.settings) * self.work.tokens

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: useful FLOP/s as a fraction (0 to 1) of the datasheet's peak rate."""
        return self.useful_flops / self.time.seconds / self.fleet.count / self.fleet.gpu.peak


def estimate(work: Work, layout: Layout, fleet: Fleet) -> Estimate:
    """Estimate memory and time of an optimizer step in one layout, with or without pipeline stages.

    Args:
        work: sizes of the model, and segments and rows of an optimizer step.
        layout: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.
        fleet: type and number of GPUs, nodes and network.
    """
    if layout.stages > 1:
        memory, time = pipeline_estimate(work, layout, fleet)
    else:
        memory = memory_of(work, layout, fleet)
        time = step_time(work, layout, fleet, memory)
    return Estimate(work, layout, fleet, memory, time)
