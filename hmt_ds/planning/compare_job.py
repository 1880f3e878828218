"""The training job that ``hmt-ds plan --compare`` estimates on clusters, and its estimated optimizer step."""

from dataclasses import dataclass

from hmt_ds.memory import MemorySettings
from hmt_ds.planning.cluster import Cluster
from hmt_ds.planning.flops import summary_positions
from hmt_ds.planning.shapes import ModelShape

BF16 = 2  # bytes
USABLE = 0.92  # of a GPU's memory, as parallel/activation_budget.py plans
# Bytes of a trained weight. Replicated: bf16 weight and float32 gradient sum (ZeRO-3 shards both). Sharded: float32
# weight and two moments, as parallel/compute_choice.py counts.
REPLICATED, SHARDED = BF16 + 4, 12


@dataclass(frozen=True)
class Job:
    """A training job to estimate: all weights trained in bf16 by Adam, with float32 gradient sums.

    Attributes:
        shape: sizes of the backbone.
        settings: settings of the memory.
        segments: number of segments that gradients flow through.
        rows: rows (sequences) per optimizer step and GPU.
    """

    shape: ModelShape
    settings: MemorySettings
    segments: int = 8
    rows: int = 2

    def forward_flops(self, parameters: float, *, summary: bool = False) -> float:
        """Return the FLOPs of one row's forward pass over a segment: 2 per parameter and position.

        Args:
            parameters: number of parameters.
            summary: whether to count the shorter pass that computes the segment's retrieval query instead.
        """
        return 2 * parameters * (summary_positions(self.settings) if summary else self.settings.positions)

    @property
    def tokens(self) -> int:
        """Number of tokens read per optimizer step and GPU, without those repeated from the previous segment."""
        return self.rows * self.segments * self.settings.segment_length


@dataclass(frozen=True)
class Estimate:
    """The estimated optimizer step of a job with a pipeline, ZeRO-1 or ZeRO-3.

    Attributes:
        layout: name of the layout for tables, such as ``sharded`` or ``4 stages x 2``.
        seconds: duration of the step.
        tokens_per_second: tokens read per second and GPU; tokens repeated from the previous segment are not counted.
        idle: fraction of the step in which a GPU runs no matrix products.
        bytes: bytes of memory on the fullest GPU.
        fits: whether ``bytes`` fits into a GPU's memory.
    """

    layout: str
    seconds: float
    tokens_per_second: float
    idle: float
    bytes: float
    fits: bool


def estimate(job: Job, cluster: Cluster, layout: str, seconds: float, arithmetic: float, size: float) -> Estimate:
    """Return the estimate of a training job in one layout, from the duration and the memory of its optimizer step.

    Args:
        job: the training job.
        cluster: the cluster.
        layout: name of the layout for tables, such as ``sharded`` or ``4 stages x 2``.
        seconds: duration of the step.
        arithmetic: seconds of the step in which a GPU runs matrix products.
        size: bytes of memory of the fullest GPU.
    """
    fits = size <= USABLE * cluster.memory
    return Estimate(layout, seconds, job.tokens / seconds, 1 - arithmetic / seconds, size, fits)
