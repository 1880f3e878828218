"""Settings that trade memory for speed: the recipe's section ``compute``. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Recompute = Literal["auto", "none", "selective", "segment", "segment+layer", "reentrant"]
Reduction = Literal["auto", "step", "segment"]
Kernels = Literal["auto", "plain", "liger", "compile"]
CudaGraphs = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class ComputeSettings:
    """Settings of activation checkpointing, gradient reduction and kernels; gradients stay the same up to rounding."""

    recompute: Recompute = "auto"
    """Activation checkpointing. none: keep all activations; selective: keep only the results of matrix products and
    attention; segment: recompute whole segments in the backward pass; segment+layer: like segment, and recompute
    layer by layer within a segment; auto: recompute only the segments whose activations do not fit into GPU memory;
    reentrant: refused, because gradients would be wrong under ZeRO."""
    summary_batch: Literal["auto"] | int = "auto"
    """Number of segments whose queries for memory retrieval are computed in one batch; more is faster and takes more
    memory. auto: as many as fit without raising peak memory."""
    reduction: Reduction = "auto"
    """When gradients are reduced across ranks. step: once per optimizer step, which needs 4 bytes per trained weight on
    each rank, and at ZeRO-3 the whole weights during the step; segment: after each backward pass, sharded; auto: step
    if it fits."""
    leaf_layers: Literal["auto"] | int = "auto"
    """Number of layers that ZeRO-3 all-gathers together if reduction is segment; more means fewer, larger all-gathers.
    auto: as many as fit into a fortieth of a GPU's memory."""
    kernels: Kernels = "auto"
    """Kernels of the layers. compile: torch.compile; liger: Liger Kernel's fused kernels; plain: transformers' own;
    auto: compile on GPUs, liger where ZeRO-3's hooks or layer checkpoints rule out compile, plain on CPUs."""
    cuda_graphs: CudaGraphs = "auto"
    """Record a segment's kernels as a CUDA graph and replay it, which saves the time of launching them; possible at
    ZeRO stages 0 to 2 with compute.reduction step, without offloading and dropout. auto: where possible, if launching
    takes longer than the kernels; always: an error where it is not possible; never: off."""
    spill: bool = False
    """Offload the memories that segments pass on, and their gradients, to host memory, which saves GPU memory if many
    segments are trained together (training.bptt_depth) and costs copies. false: keep them on the GPU."""
