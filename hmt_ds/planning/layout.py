"""The sizes of a training run (`Work`), and the ways to spread it over GPUs (`Layout`)."""

from dataclasses import dataclass
from math import ceil

from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.compute_choice import LAUNCH_BOUND
from hmt_ds.parallel.settings import CudaGraphs, Recompute, Reduction
from hmt_ds.planning.model_size import ModelSize


@dataclass(frozen=True)
class Work:
    """What a training run computes in an optimizer step, whatever its layout over GPUs.

    Attributes:
        size: sizes of the model.
        settings: settings of the memory.
        depth: number of segments that gradients flow through (length of a truncated-BPTT window), at the run's longest.
        rows: rows (sequences) of an optimizer step, over all GPUs and gradient accumulation.
        number_bytes: bytes of a number in forward passes: 2 in bf16 and fp16, 4 in fp32.
        can_pipeline: whether the model and the recipe allow pipeline stages.
        can_shard: whether the model can be built at ZeRO-3.
    """

    size: ModelSize
    settings: MemorySettings
    depth: int
    rows: int
    number_bytes: int = 2
    can_pipeline: bool = True
    can_shard: bool = True

    @property
    def tokens(self) -> int:
        """Number of tokens read in an optimizer step over all GPUs; tokens repeated from the previous segment are not
        counted."""
        return self.rows * self.depth * self.settings.segment_length


@dataclass(frozen=True)
class Layout:
    """One way to spread a run over GPUs: ZeRO stage, pipeline stages, rows at a time, recomputation and offloading.

    Attributes:
        stage: ZeRO stage, 0 to 3.
        reduction: ``step`` or ``segment``, as in the recipe's ``compute.reduction``.
        rows: rows (sequences) that a rank, or a pipeline's micro-batch, reads at a time.
        stages: number of pipeline stages; 1 without a pipeline.
        micro_batches: number of micro-batches that a pipeline's rows are split into.
        recompute: as in the recipe's ``compute.recompute``.
        offloaded: fraction (0 to 1) of the optimizer states that is in host memory.
        offloads_weights: whether ZeRO-3's weights are in host memory too.
        leaf_layers: number of layers that ZeRO-3 gathers together with reduction ``segment``; None for as many as
            ``auto`` takes.
        cuda_graphs: as in the recipe's ``compute.cuda_graphs``.
    """

    stage: int
    reduction: Reduction
    rows: int
    stages: int = 1
    micro_batches: int = 1
    recompute: Recompute = "auto"
    offloaded: float = 0.0
    offloads_weights: bool = False
    leaf_layers: int | None = None
    cuda_graphs: CudaGraphs = "auto"

    @property
    def family(self) -> str:
        """Name of the kind of layout, such as ``ZeRO-3, reduction step`` or ``pipeline of 4 stages, ZeRO-1``."""
        if self.stages > 1:
            return f"pipeline of {self.stages} stages, ZeRO-{self.stage}"
        host = ", optimizer on the host" if self.offloaded else ""
        host = ", weights and optimizer on the host" if self.offloads_weights else host
        return f"ZeRO-{self.stage}, reduction {self.reduction}{host}"

    @property
    def compiles(self) -> bool:
        """Whether the layers are compiled in this layout if the recipe has ``compute.kernels: auto``."""
        return self.reduction == "step" and self.recompute in ("auto", "none", "segment")

    def data_ranks(self, gpus: int) -> int:
        """Return the number of ranks (or of pipelines) that train on different rows.

        Args:
            gpus: number of GPUs.
        """
        return gpus // self.stages

    def windows(self, work: Work, gpus: int) -> int:
        """Return how many windows (batches of rows times segments) a rank or pipeline reads one after the other per
        optimizer step.

        Args:
            work: sizes of the model, and segments and rows of an optimizer step.
            gpus: number of GPUs.
        """
        return max(1, ceil(work.rows / (self.data_ranks(gpus) * self.rows * self.micro_batches)))

    def replays(self, work: Work) -> bool:
        """Return whether CUDA graphs replay the forward and backward passes in this layout.

        They do where launching kernels takes longer than running them.

        Args:
            work: sizes of the model, and segments and rows of an optimizer step.
        """
        possible = self.stage < 3 and self.stages == 1 and self.compiles and not self.offloaded
        if self.cuda_graphs != "auto":
            return possible and self.cuda_graphs == "always"
        return possible and self.rows * work.settings.positions * work.size.layer < LAUNCH_BOUND
