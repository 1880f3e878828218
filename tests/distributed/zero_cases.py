"""Configurations for the ZeRO executor's tests: stage, trained weights, precision, reduction, recomputation, memory."""

import itertools
from dataclasses import astuple, dataclass, replace
from typing import Any

from tiny_runs import ADAPTED, DEPTH, MEMORY

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
    mode: str = "hmt"
    interface: str = "paper"
    recalled: int = 1
    recall_loss: float = 0.0
    loss: str = "all"

    def __str__(self) -> str:
        return "-".join(map(str, astuple(self)))

    def compute(self) -> ComputeSettings:
        """The compute settings of this case."""
        return ComputeSettings(self.recompute, self.summary_batch, self.reduction, self.leaf_layers, self.kernels)

    @property
    def memory(self) -> Any:
        """The memory settings of this case."""
        if self.interface == "paper":
            return replace(MEMORY, mode=self.mode)
        return replace(ADAPTED, mode=self.mode, recalled_memories=self.recalled, recall_loss=self.recall_loss)

    def calls(self) -> int:
        """Calls of a layer in one step: one per forward pass, and one more for each recomputation."""
        depth = DEPTH // self.accumulation
        readings = depth + (-(-depth // min(self.summary_batch, depth)) if self.memory.summarises else 0)
        # every segment is computed twice except a window's last; without memory none
        once = self.recompute in ("none", "selective") or self.mode == "backbone"
        times = readings if once else 2 * readings - 1
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
# memory, trained weights: mode, number of older memories, weight of the recall's loss
ADAPTED_KINDS = [
    *[("hmt", 2, 0.3, train) for train in ("whole", "frozen", "lora")],
    *[("hmt", 1, 0.3, "whole"), ("hmt", 1, 0.0, "whole"), ("hmt", 2, 0.0, "lora")],
    *[(mode, 1, 0.0, train) for mode in ("rmt", "backbone") for train in ("whole", "frozen")],
]
ADAPTED_GRID = [
    Case(config, train, reduction=way, mode=mode, interface="adapted", recalled=recalled, recall_loss=weight)
    for way, config, (mode, recalled, weight, train) in itertools.product(("segment", "step"), CONFIGS, ADAPTED_KINDS)
]
ADAPTED_SAMPLE = [
    Case("zero0", interface="adapted", recalled=2, recall_loss=0.3, recompute="none"),
    Case("zero1", "lora", interface="adapted", recall_loss=0.3),
    Case("zero1", reduction="step", mode="backbone", interface="adapted"),
    Case("zero2", reduction="step", interface="adapted", recalled=2, recall_loss=0.3, accumulation=2),
    Case("zero2_offload", "frozen", interface="adapted", recalled=2, recall_loss=0.3),
    Case("zero3", interface="adapted", recalled=2, recall_loss=0.3),
    Case("zero3", reduction="step", mode="rmt", interface="adapted", recompute="segment+layer"),
    Case("zero3", mode="rmt", interface="adapted"),
    Case("zero3", "frozen", mode="backbone", interface="adapted"),
    Case("zero3_offload", interface="adapted", recall_loss=0.3),
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
# labels of answers alone, and with weights
# losses of answers alone, with weights, and of packed documents
FLOAT64 = [
    Case("zero0", precision="fp64", loss=loss, reduction=way, accumulation=accumulation)
    for loss, way, accumulation in (
        ("answers", "step", 1),
        ("answers", "segment", 2),
        ("weighted", "step", 2),
        ("weighted", "segment", 1),
        ("packed", "step", 1),
    )
]
COUNTED = [
    Case("zero0", loss="answers", accumulation=2),
    Case("zero0", loss="weighted", reduction="step"),
    Case("zero1", loss="answers", reduction="step", accumulation=2),
    Case("zero1", loss="weighted"),
    Case("zero2", loss="answers", reduction="step"),
    Case("zero2", loss="weighted", accumulation=2),
    Case("zero3", loss="answers"),
    Case("zero3", loss="weighted", accumulation=2),
    Case("zero3", loss="weighted", reduction="step", recompute="selective"),
    Case("zero1", loss="packed", reduction="step"),
    Case("zero3", loss="packed", summary_batch=2),
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
