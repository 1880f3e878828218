"""Folders that ``hmt-ds convert`` has written, as the start of a run: backbone and memory modules lie in one model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils import cached_file

from hmt_ds.backbones.model import BackboneError
from hmt_ds.memory.settings import MemorySettings

MODEL_TYPE = "hmt"
PREFIX = "hmt."
KEYS = {r"^hmt\.backbone\.model\.": ""}  # from the names in such a folder to the backbone's own
SHAPED = ("memory_tokens", "recall_dim")  # settings that are shapes of weights


def read_converted(source: Any) -> dict[str, Any] | None:
    """The configuration of a converted folder, or None if it is anything else. No code is run."""
    if not isinstance(source, str):
        return None
    try:
        config, _ = PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError):
        return None
    return config if config.get("model_type") == MODEL_TYPE and "backbone" in config else None


def backbone_config(converted: dict[str, Any]) -> Any:
    """The backbone's part of it."""
    values = dict(converted["backbone"])
    return AutoConfig.for_model(values.pop("model_type"), **values)


@contextmanager
def memory_beside_backbone(config: Any) -> Iterator[None]:
    """While a backbone is read from such a folder, in which transformers would call the memory modules unexpected."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    ignored = kind._keys_to_ignore_on_load_unexpected
    kind._keys_to_ignore_on_load_unexpected = [*(ignored or ()), rf"^{PREFIX}(?!backbone\.)"]
    try:
        yield
    finally:
        kind._keys_to_ignore_on_load_unexpected = ignored


def check_memory(source: Any, memory: MemorySettings) -> None:
    """Can the memory modules of a converted folder be taken up by a run with these settings?

    Modules that the folder lacks begin anew: a run of mode ``hmt`` can start from one of mode ``rmt``.

    Args:
        source: anything that a run can start from.
        memory: the recipe's section.

    Raises:
        BackboneError: naming what differs, with both values.
    """
    converted = read_converted(source)
    if converted is None:
        return
    stored = converted["memory"]
    both = [mode for mode in ("hmt", "rmt", "backbone") if mode in (stored["mode"], memory.mode)][-1]
    for key in {"hmt": SHAPED, "rmt": SHAPED[:1], "backbone": ()}[both]:
        here = getattr(memory, key)
        if here is not None and here != stored[key]:
            raise BackboneError(f"memory.{key} is {stored[key]} in the weights of model.source, {here} here")


def fill_memory(model: nn.Module, source: str) -> list[str]:
    """Put a converted folder's memory modules into an HMT, in place; returns the names of those that it has."""
    own = {name: weight for name, weight in model.named_parameters() if not name.startswith("backbone.")}
    found = []
    for file in files_of(source, "model.safetensors"):
        with safe_open(file, framework="pt") as saved:
            for name in saved.keys():  # noqa: SIM118
                weight = own.get(name.removeprefix(PREFIX))
                if weight is None:
                    continue
                if list(weight.shape) != (shape := saved.get_slice(name).get_shape()):
                    raise BackboneError(f"{name} has the shape {shape} in {source}, {list(weight.shape)} here")
                with torch.no_grad():
                    weight.copy_(saved.get_tensor(name))
                found.append(name.removeprefix(PREFIX))
    return found


def files_of(source: str, name: str) -> list[Path]:
    """A model's weights in a folder or on the hub: the file of that name, or its parts; empty if there is neither."""
    index = cached_file(source, f"{name}.index.json", _raise_exceptions_for_missing_entries=False)
    if index is None:
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        return [Path(file)] if file else []
    parts = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    return [Path(str(cached_file(source, part))) for part in parts]
