"""Dividing layers by time: with given times, and measured on a tiny model."""

from collections.abc import Callable

import pytest
import torch
from tiny import GPT2, LLAMA, make_settings
from torch.utils.flop_counter import FlopCounterMode

from hmt_ds.backbones import LoraSettings, read_config
from hmt_ds.parallel.pipeline import layer_times as times_module
from hmt_ds.parallel.pipeline.build_stage import stage_layers
from hmt_ds.parallel.pipeline.layer_times import LayerTimes, layer_times
from hmt_ds.training.build import describe_split

CPU = torch.device("cpu")


def sizes(layers: int, stages: int, times: LayerTimes) -> list[int]:
    config = read_config(LLAMA | {"num_hidden_layers": layers})
    return [span.end - span.first for span in stage_layers(config, stages, times)]


@pytest.mark.parametrize(
    ("layers", "stages", "head", "expected"),
    [
        (8, 2, 0.0, [4, 4]),
        (8, 2, 2.0, [5, 3]),  # 5 and 3 + 2
        (8, 2, 9.0, [7, 1]),  # the head's stage has a layer, even if it is the slowest anyway
        (13, 3, 2.0, [5, 5, 3]),
        (4, 4, 5.0, [1, 1, 1, 1]),
    ],
)
def test_the_slowest_stage_is_as_fast_as_possible(layers, stages, head, expected):
    assert sizes(layers, stages, LayerTimes(0.003, 0.003 * head)) == expected


def test_the_division_is_reported():
    spans = stage_layers(read_config(LLAMA | {"num_hidden_layers": 8}), 2, LayerTimes(0.0125, 0.025))
    said = describe_split(spans, LayerTimes(0.0125, 0.025))
    assert said == "pipeline.layers by time: [5, 3]; a layer takes 12.5 ms, the head 25 ms"


def found(config: dict, **options) -> LayerTimes:
    how = {"rows": 2, "dtype": torch.float32, "device": CPU} | options
    return layer_times(read_config(config), make_settings(mode=how.pop("mode", "hmt")), **how)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("options", [{}, {"mode": "backbone"}, {"train": "lora", "lora": LoraSettings(2)}], ids=str)
def test_it_measures(config, options):
    times = found(config, **options)
    assert 0 < times.layer < 10 and 0 < times.head < 10


def flops_of(work: Callable[[], None], device: torch.device) -> float:
    """Count FLOPs in place of seconds, which depend on the machine's other work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_a_large_head_takes_longer(monkeypatch):
    """A thousand times the vocabulary takes a thousand times as long; a layer's time stays."""
    monkeypatch.setattr(times_module, "seconds_of", flops_of)
    small, large = found(LLAMA), found(LLAMA | {"vocab_size": 1000 * LLAMA["vocab_size"]})
    assert large.head == 1000 * small.head > large.layer == small.layer
