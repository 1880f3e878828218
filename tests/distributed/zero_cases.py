"""Configurations for the ZeRO executor's tests: stage, trained weights, precision, reduction, recomputation."""

import itertools
from dataclasses import astuple, dataclass

from tiny_runs import DEPTH

from hmt_ds.parallel.compute_choice import ComputeSettings

CONFIGS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


@dataclass(frozen=True)
class Case:
    """One row of the table: a file of ds_configs, and how it is used."""

    config: str
    train: str = "whole"
    precision: str = "fp32"
    accumulation: int = 1
    reduction: str = "segment"
    recompute: str = "segment"
    summary_batch: int = 1
    leaf_layers: int = 1
    optimizer: str = "AdamW"
    kernels: str = "plain"

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))

    def compute(self) -> ComputeSettings:
        """The compute settings of this case."""
        return ComputeSettings(self.recompute, self.summary_batch, self.reduction, self.leaf_layers, self.kernels)

    def calls(self) -> int:
        """Calls of a layer in one step: one per forward pass, and one more for each recomputation."""
        depth = DEPTH // self.accumulation
        readings = depth + -(-depth // min(self.summary_batch, depth))
        # every segment is computed twice except a window's last
        times = readings if self.recompute in ("none", "selective") else 2 * readings - 1
        checkpoints = readings if self.recompute in ("selective", "segment+layer") else 0
        return self.accumulation * (times + checkpoints)


GRID = [
    Case(config, train, reduction=reduction)
    for reduction, train, config in itertools.product(("segment", "step"), ("whole", "frozen", "lora"), CONFIGS)
]
COMPILED = [
    Case(config, reduction=way, leaf_layers=2, kernels="compile")
    for config, way in (("zero1", "step"), ("zero2", "segment"), ("zero3", "segment"), ("zero3", "step"))
]
BF16 = [
    Case(config, precision="bf16", reduction=way) for way, config in itertools.product(("segment", "step"), CONFIGS)
]
ACCUMULATION = [
    Case(config, accumulation=2, reduction=way) for way, config in itertools.product(("segment", "step"), CONFIGS)
]
# recomputation policies; summary batches that do and do not divide the window; two layers per leaf
POLICIES = [
    Case(config, reduction=way, recompute=recompute, summary_batch=batch, leaf_layers=2)
    for config, way, (recompute, batch) in itertools.product(
        CONFIGS, ("segment", "step"), [("none", 2), ("selective", 4), ("segment", 3), ("segment+layer", 2)]
    )
]
ACCUMULATION_SAMPLE = [
    Case("zero0", accumulation=2, reduction="step"),
    Case("zero2_offload", accumulation=2),
    Case("zero3", accumulation=2),
    Case("zero3", accumulation=2, reduction="step"),
]
BF16_SAMPLE = [
    Case("zero0", precision="bf16", reduction="step"),
    Case("zero1", precision="bf16"),
    Case("zero2", precision="bf16", reduction="step"),
    Case("zero3", precision="bf16"),
    Case("zero3", precision="bf16", reduction="step"),
]
# every stage and offload file with both reductions, every training mode, every policy
SAMPLE = [
    Case("zero0"),
    Case("zero0", reduction="step", recompute="segment+layer", summary_batch=3),
    Case("zero1", "lora"),
    Case("zero1", reduction="step"),
    Case("zero2"),
    Case("zero2", reduction="step", recompute="selective", summary_batch=4),
    Case("zero3"),
    Case("zero3", recompute="none", summary_batch=2, leaf_layers=2),
    Case("zero3", "lora", reduction="step", summary_batch=2),
    Case("zero2_offload", "frozen"),
    Case("zero2_offload", reduction="step"),
    Case("zero2_offload", recompute="none", summary_batch=3),
    Case("zero3_offload", "lora"),
    Case("zero3_offload", recompute="segment+layer", summary_batch=2, leaf_layers=2),
    Case("zero3_offload", reduction="step", recompute="none"),
]
