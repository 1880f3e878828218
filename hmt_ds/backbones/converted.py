"""Start a run from a folder that ``hmt-ds convert`` has written: a backbone and memory modules in one model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from hmt_ds.backbones.model import BackboneError
from hmt_ds.backbones.transformers_internals import find_file, ignore_weights
from hmt_ds.memory.settings import MemorySettings

ConfigValues = dict[str, Any]  # a configuration of transformers as JSON values
MODEL_TYPE = "hmt"
PREFIX = "hmt."
BACKBONE_KEY_MAPPING = {r"^hmt\.backbone\.model\.": ""}  # from names in a converted folder to the backbone's own
SHAPE_SETTINGS = ("memory_tokens", "recall_dim")  # the memory settings that are sizes of weights


def read_converted(source: object) -> ConfigValues | None:
    """Read config.json of a folder that ``hmt-ds convert`` wrote, without running the folder's code.

    Args:
        source: a recipe's ``model.source``: a folder, a hub name or a mapping.

    Returns:
        The content; None for sources of any other kind.
    """
    if not isinstance(source, str):
        return None
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, RecursionError, ValueError):
        return None
    return config if config.get("model_type") == MODEL_TYPE and "backbone" in config else None


def backbone_config(converted: ConfigValues) -> PreTrainedConfig:
    """Build a backbone's configuration from config.json of a folder that ``hmt-ds convert`` wrote.

    Args:
        converted: the content of config.json.
    """
    values = dict(converted["backbone"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


@contextmanager
def without_memory(config: PreTrainedConfig) -> Iterator[None]:
    """Let transformers load only the backbone of a converted folder in the ``with`` block, without warnings.

    Otherwise it would warn of the memory modules' weights, which the backbone does not have.

    Args:
        config: the backbone's configuration, whose model class decides which unknown weights are reported.
    """
    with ignore_weights(config, rf"^{PREFIX}(?!backbone\.)"):
        yield


def check_memory(source: object, memory: MemorySettings) -> None:
    """Check that a run's memory settings fit the memory modules of the converted folder that it starts from.

    Modules that the folder lacks start from random weights, so a run of mode ``hmt`` can start from one of mode
    ``rmt``.

    Args:
        source: the recipe's ``model.source``; anything but a folder written by ``hmt-ds convert`` passes.
        memory: the recipe's section ``memory``.

    Raises:
        BackboneError: naming the setting that differs, with both values.
    """
    if converted := read_converted(source):
        compare_memory(converted["memory"], memory)


def compare_memory(stored: dict[str, Any], memory: MemorySettings) -> None:
    """Check that a recipe's memory settings fit stored memory modules: same interface, same sizes of weights.

    Args:
        stored: memory settings of the stored modules, by key, such as ``memory_tokens``. A key whose value is None in
            ``stored`` or in ``memory`` is not compared.
        memory: the recipe's section ``memory``.

    Raises:
        BackboneError: naming the setting that differs, with both values.
    """
    interface = stored.get("interface", "paper")  # folders written before there was another one do not name it
    common_mode = [mode for mode in ("hmt", "rmt", "backbone") if mode in (stored["mode"], memory.mode)][-1]
    # a backbone that was trained behind a sink needs it in any mode; one without memory can get a sink
    if memory.interface != interface and (common_mode, interface) != ("backbone", "paper"):
        raise BackboneError(
            f"memory.interface is {memory.interface}, but model.source was trained with {interface}: "
            f"set it to {interface}"
        )
    for key in {"hmt": SHAPE_SETTINGS, "rmt": SHAPE_SETTINGS[:1], "backbone": ()}[common_mode]:
        here, there = getattr(memory, key), stored[key]
        if None not in (here, there) and here != there:
            raise BackboneError(f"memory.{key} is {here}, but model.source was trained with {there}: set it to {there}")


def fill_memory(model: nn.Module, source: str) -> list[str]:
    """Copy a converted folder's memory modules into an HMT (a backbone with memory), in place.

    Args:
        model: the HMT to fill; its backbone is left unchanged.
        source: the folder that ``hmt-ds convert`` wrote, or its name on the hub.

    Returns:
        The names, in ``model``, of the weights that were copied.

    Raises:
        BackboneError: a weight has different shapes in the folder and in the model.
    """
    weights = {name: weight for name, weight in model.named_parameters() if not name.startswith("backbone.")}
    found = []
    for file in model_files(source, "model.safetensors"):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118
                weight = weights.get(name.removeprefix(PREFIX))
                if weight is None:
                    continue
                if list(weight.shape) != (shape := saved.get_slice(name).get_shape()):
                    raise BackboneError(
                        f"{name} has the shape {shape} in {source}, but {list(weight.shape)} by the recipe's section "
                        "memory: set the sizes that the folder was trained with"
                    )
                with torch.no_grad():
                    weight.copy_(saved.get_tensor(name))
                found.append(name.removeprefix(PREFIX))
    return found


def model_files(source: str, name: str) -> list[Path]:
    """List the weight files of a model, in a folder or on the hub: the file called ``name``, or else its shards.

    If both exist, only the single file is used, as in transformers, because the shards may be left from an earlier
    save.

    Args:
        source: a folder or a hub name.
        name: name of the unsharded file, such as ``model.safetensors``.
    """
    if (file := find_file(source, name)) is not None:
        return [file]
    index = find_file(source, f"{name}.index.json")
    if index is None:
        return []
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [Path(cached_file(source, shard)) for shard in shards]  # raises OSError for a missing shard
