"""What a layer and the head take of a stage's time, measured on one layer with random weights."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch

from hmt_ds.backbones import CausalLM, LoraSettings, select_trainable
from hmt_ds.backbones.probe import one_layer_model
from hmt_ds.distributed.process_group import from_rank_0, rank
from hmt_ds.memory import MemorySettings
from hmt_ds.memory.loss import row_losses

WARM_UP, REPEATS = 2, 5


class LayerTimes(NamedTuple):
    """Seconds for one segment of a micro-batch, forward and backward.

    Attributes:
        layer: with its summary, and with what is computed again.
        head: with the loss.
    """

    layer: float
    head: float


def layer_times(config: Any, settings: MemorySettings, *, device: torch.device, **options: Any) -> LayerTimes:
    """As rank 0 finds them on its device; the others wait for it, so that all divide the layers alike.

    Args:
        config: the backbone's.
        options: for :func:`time_layer`.
    """
    found = time_layer(config, settings, device=device, **options) if rank() == 0 else None
    return LayerTimes(*from_rank_0(found))  # type: ignore[misc]


def time_layer(
    config: Any,
    settings: MemorySettings,
    *,
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    train: str = "whole",
    lora: LoraSettings | None = None,
) -> LayerTimes:
    """Medians of some readings, by plain kernels.

    Args:
        rows: of a micro-batch.
        train: what of the backbone is trained.
    """
    backbone = CausalLM(one_layer_model(config))
    select_trainable(backbone, train, lora)
    backbone.to(device, dtype)
    hidden = torch.randn(rows, settings.segment_length, backbone.dim, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(backbone.vocabulary, hidden.shape[:2], device=device)

    def layer(positions: int) -> Callable[[], None]:
        given = torch.randn(rows, positions, backbone.dim, device=device, dtype=dtype, requires_grad=True)

        def read() -> None:
            with torch.no_grad():
                backbone.decode(given)
            backbone.decode(given).sum().backward()

        return read

    def head() -> None:
        losses = row_losses(backbone.logits, hidden, labels, backbone.vocabulary, backward_follows=True)
        losses.sum().backward()

    lengths = [settings.positions]
    if settings.mode == "hmt":
        lengths.append(settings.summary_length + 2 * settings.memory_tokens)
    return LayerTimes(sum(seconds_of(layer(length), device) for length in lengths), seconds_of(head, device))


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(WARM_UP + REPEATS):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        taken.append(time.perf_counter() - start)
    return median(taken[WARM_UP:])


def finish(device: torch.device) -> None:
    """Wait until the device has done all."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
