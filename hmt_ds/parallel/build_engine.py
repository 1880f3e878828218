"""Build a DeepSpeed engine around a model: one that trains, or one without an optimizer that only evaluates."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from typing import cast

import deepspeed
import torch

from hmt_ds.backbones import CausalLM
from hmt_ds.backbones.compute import compile_layers, use_liger
from hmt_ds.distributed.deepspeed_internals import full_numel, join_offloaded_parts, skip_steps_on_overflow
from hmt_ds.distributed.engine import Engine
from hmt_ds.distributed.quick_imports import import_without_compiler
from hmt_ds.memory import HMT
from hmt_ds.memory.loss import cross_entropy
from hmt_ds.parallel.build_hmt import parameter_groups
from hmt_ds.parallel.compute_choice import resolve
from hmt_ds.parallel.deepspeed_config.fill import DsConfig, computes_in_autocast, stage_of, with_bucket
from hmt_ds.parallel.gradients import move_buffers
from hmt_ds.parallel.protocols import GradientReduction
from hmt_ds.parallel.settings import ComputeSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


@dataclass(frozen=True)
class ExecutorOptions:
    """Settings for running a model in a DeepSpeed engine: DeepSpeed's configuration, precision, device and learning
    rates.

    Attributes:
        ds_config: DeepSpeed's configuration, every ``auto`` filled in.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: device of this rank.
        depth: number of segments that gradients flow through (length of a truncated-BPTT window) in the first steps.
        compute: settings of activation checkpointing, gradient reduction and kernels.
        memory_lr: learning rate of the memory modules; None for the backbone's.
        scheduler: function that makes a learning rate schedule from an optimizer; None for a constant rate.
    """

    ds_config: DsConfig
    precision: str
    device: torch.device
    depth: int
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    memory_lr: float | None = None
    scheduler: Callable[[torch.optim.Optimizer], object] | None = None

    @property
    def in_autocast(self) -> bool:
        """Whether weights stay in fp32 and torch.autocast lowers the precision of forward passes."""
        return computes_in_autocast(self.ds_config, self.precision)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and memory embeddings, by ``precision`` and whether torch.autocast is used."""
        return torch.float32 if self.in_autocast else DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast context for forward passes that run outside DeepSpeed's engine; the engine enters its own."""
        low = DTYPES[self.precision]
        return torch.autocast(self.device.type, low, enabled=self.in_autocast, cache_enabled=False)


def build_engine(
    model: HMT,
    gradients: GradientReduction,
    options: ExecutorOptions,
    compute: ComputeSettings,
    grid: object = None,
) -> Engine[HMT]:
    """Compile a model if the settings say so, wrap it in a DeepSpeed engine, and attach the gradient reduction.

    Args:
        model: a model prepared by :func:`hmt_ds.parallel.compute_choice.prepare_layers`.
        gradients: gradient reduction, made from the model before DeepSpeed puts hooks into it.
        options: DeepSpeed configuration, precision and device.
        compute: ``compute`` settings in which every ``auto`` has been replaced by the value chosen for the model.
        grid: DeepSpeed's process grid, for pipelines; None if all ranks are data-parallel.

    Returns:
        DeepSpeed's engine, with optimizer and learning rate schedule.
    """
    if compute.kernels == "compile":
        compile_layers(cast(CausalLM, gradients.model.backbone))
    if compute.kernels != "plain":
        gradients.model.cross_entropy = torch.compile(cross_entropy)
    once = compute.reduction == "step"
    trained = sum(full_numel(weight) for weight in model.parameters() if weight.requires_grad)
    config = with_bucket(options.ds_config, trained, once=once)
    # DeepSpeed counts backward passes. The executor itself says which one is a step's last, so any number above 1 will
    # do where there are several.
    config |= {"gradient_accumulation_steps": 1 if once else 2}
    import_without_compiler(MUON)  # every engine imports it to ask whether its optimizer is a Muon
    with redirect_stdout(io.StringIO()):  # DeepSpeed prints how much memory it takes
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model, options.memory_lr),
            lr_scheduler=options.scheduler,
            mpu=grid,
            config=config,
        )
    skip_steps_on_overflow(engine)
    join_offloaded_parts(engine)
    gradients.attach(engine)
    return engine


def build_reading_engine(model: HMT, options: ExecutorOptions, grid: object = None) -> Engine[HMT]:
    """Wrap a model in a DeepSpeed engine for evaluation only: without optimizer states, gradients and fp32 master
    weights.

    ZeRO-1 and ZeRO-2 shard only optimizer states and gradients, and DeepSpeed refuses them without an optimizer, so
    they become stage 0: every rank holds the whole weights. At stage 3 the weights stay sharded. Weights are loaded in
    the dtype that they were trained in.

    Args:
        model: the model to evaluate.
        options: DeepSpeed configuration, precision and device.
        grid: DeepSpeed's process grid, for pipelines; None if all ranks are data-parallel.
    """
    if resolve(options.compute, model, options.ds_config, options.device).kernels == "liger":
        use_liger(cast(CausalLM, model.backbone))  # compiled kernels are for training alone
    config = {key: value for key, value in options.ds_config.items() if key != "optimizer"}
    if stage_of(config) < 3:
        config["zero_optimization"] = {"stage": 0}
    with redirect_stdout(io.StringIO()):  # DeepSpeed prints how much memory it takes
        engine, *_ = deepspeed.initialize(model=model, mpu=grid, config=config)
    move_buffers(model, options.device)
    engine.eval()
    return engine
