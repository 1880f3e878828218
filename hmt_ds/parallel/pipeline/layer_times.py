"""Measure the seconds of one layer and of the output head, with random weights, to balance pipeline stages."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple, cast

import torch
from transformers import PretrainedConfig

from hmt_ds.backbones import CausalLM, LoraSettings, select_trainable
from hmt_ds.backbones.probe import small_model
from hmt_ds.distributed.process_group import broadcast_object, rank
from hmt_ds.memory import MemorySettings
from hmt_ds.memory.loss import row_losses

WARM_UP, REPEATS = 2, 5


class LayerTimes(NamedTuple):
    """Measured seconds per segment of a micro-batch, forward and backward pass together, by part of the model.

    Attributes:
        layer: one layer, recomputation included, with its share of the pass that computes the retrieval query.
        head: the output head and the loss.
    """

    layer: float
    head: float


def layer_times(
    config: PretrainedConfig,
    settings: MemorySettings,
    *,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    train: str = "whole",
    lora: LoraSettings | None = None,
) -> LayerTimes:
    """Measure the seconds of a layer and of the head on rank 0, and broadcast them, so that all ranks divide layers
    alike.

    All ranks must call it.

    Args:
        config: configuration of the backbone.
        settings: settings of the memory.
        rows: number of sequences in a micro-batch.
        dtype: dtype of the weights.
        device: device of this rank.
        train: which weights of the backbone are trained: ``whole``, ``frozen`` or ``lora``.
        lora: LoRA settings; required if ``train`` is ``lora``.
    """
    found = None
    if rank() == 0:
        backbone = CausalLM(small_model(config))
        select_trainable(backbone, train, lora)
        backbone.to(device, dtype)
        found = time_layer(backbone, settings, rows, dtype, device)
    return cast(LayerTimes, broadcast_object(found))


def time_layer(
    backbone: CausalLM, settings: MemorySettings, rows: int, dtype: torch.dtype, device: torch.device
) -> LayerTimes:
    """Measure the median seconds of a layer and of the output head, uncompiled, on a backbone of one layer.

    Args:
        backbone: a backbone with one layer.
        settings: settings of the memory.
        rows: number of sequences in a micro-batch.
        dtype: dtype of activations.
        device: device of this rank.
    """
    hidden = torch.randn(rows, settings.segment_length, backbone.dim, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(backbone.vocabulary, hidden.shape[:2], device=device)

    def layer(positions: int) -> Callable[[], None]:
        stage_input = torch.randn(rows, positions, backbone.dim, device=device, dtype=dtype, requires_grad=True)

        def run() -> None:
            # as in training: the forward pass, then its recomputation with a graph
            with torch.no_grad():
                backbone.decode(stage_input)
            backbone.decode(stage_input).sum().backward()

        return run

    def head() -> None:
        losses = row_losses(backbone.logits, hidden, labels, backbone.vocabulary, backward_follows=True)
        losses.sum().backward()

    lengths = [settings.positions]
    if settings.summarises:
        lengths.append(settings.summary_positions)
    return LayerTimes(sum(seconds_of(layer(length), device) for length in lengths), seconds_of(head, device))


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """Return the median seconds of several calls of a function, including the work that it queues on the device.

    Args:
        work: the function.
        device: device that it queues work on.
    """
    taken = []
    for _ in range(WARM_UP + REPEATS):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return median(taken[WARM_UP:])


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
