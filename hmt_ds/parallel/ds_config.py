"""DeepSpeed's configuration: read from ds_configs/*.json, with the values filled in that the recipe decides."""

import copy
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

AUTO = "auto"
HOW = {"torch_adam", "foreach", "fused", "capturable", "differentiable"}  # ways to compute Adam's step
ONCE = 2 * 10**8  # numbers in a bucket: enough for a network's full speed


class DeepSpeedConfigError(ValueError):
    """A DeepSpeed file that cannot be read or that contradicts the recipe; one line per problem."""


@dataclass(frozen=True)
class EngineSettings:
    """What the recipe decides and DeepSpeed has to know.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: rows per rank.
        gradient_accumulation: windows between two optimizer steps. (The executor counts backward passes for
            DeepSpeed.)
        gradient_clipping: largest norm, 0 for none.
        optimizer: name and arguments, by DeepSpeed's names.
    """

    precision: str
    batch_size: int
    gradient_accumulation: int
    gradient_clipping: float
    optimizer: str
    optimizer_params: dict[str, Any]


def read_ds_config(file: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed file.

    Raises:
        DeepSpeedConfigError: if it is no JSON object.
    """
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DeepSpeedConfigError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(config, dict):
        raise DeepSpeedConfigError(f"{file}: must hold an object with DeepSpeed's keys")
    return config


def stage_of(config: dict[str, Any]) -> int:
    """The ZeRO stage."""
    return config.get("zero_optimization", {}).get("stage", 0)


def computes_in_autocast(config: dict[str, Any], precision: str) -> bool:
    """Whether weights stay in float32 and torch.autocast casts them, instead of weights in the lower precision.

    So it is where DeepSpeed cannot add up low-precision gradients in float32: at stage 0, and at stage 2 with the
    optimizer offloaded. Float32 gradients need no second copy, so stage 0 takes no more memory for it.
    """
    stage = stage_of(config)
    return precision != "fp32" and (stage == 0 or (stage in (1, 2) and offloads(config)))


def offloads(config: dict[str, Any]) -> bool:
    """Whether the optimizer's states live in the host's memory."""
    return config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"


def share_on_gpu(config: dict[str, Any]) -> float:
    """Of the optimizer's states. At stage 3 DeepSpeed can offload a part of them."""
    if not offloads(config):
        return 1.0
    zero = config["zero_optimization"]
    return 1.0 - zero["offload_optimizer"].get("ratio", 1.0) if zero.get("stage") == 3 else 0.0


def with_bucket(config: dict[str, Any], trained: int, *, once: bool) -> dict[str, Any]:
    """The configuration with buckets for gradients that are as small as they may be, unless the file says their size.

    DeepSpeed makes two of each type and sums in a third, of 5e8 numbers: for LoRA that is memory for nothing.

    Args:
        trained: how many numbers all gradients have.
        once: whether they are reduced once a step; then it does not matter how often something is launched for it.
    """
    zero = dict(config.get("zero_optimization", {}))
    zero.setdefault("reduce_bucket_size", min(trained, ONCE if once else DeepSpeedZeroConfig().reduce_bucket_size))
    return config | {"zero_optimization": zero}


def decided_values(config: dict[str, Any], settings: EngineSettings) -> dict[tuple[str, ...], Any]:
    """DeepSpeed's keys that the recipe decides, with their values."""
    autocast = computes_in_autocast(config, settings.precision)
    low = "" if autocast else settings.precision
    values: dict[tuple[str, ...], Any] = {
        ("train_micro_batch_size_per_gpu",): settings.batch_size,
        ("gradient_accumulation_steps",): settings.gradient_accumulation,
        ("gradient_clipping",): settings.gradient_clipping,
        ("bf16", "enabled"): low == "bf16",
        ("fp16", "enabled"): low == "fp16",
        ("torch_autocast", "enabled"): autocast,
        ("torch_autocast", "dtype"): {"fp16": "float16"}.get(settings.precision, "bfloat16"),
        ("data_types", "grad_accum_dtype"): "fp32",
        ("optimizer", "type"): settings.optimizer,
    }
    for name, value in settings.optimizer_params.items():
        values["optimizer", "params", name] = value
    if settings.optimizer in ("Adam", "AdamW") and not offloads(config):
        # torch's needs no compiler; with offloading DeepSpeed's own for CPUs is several times faster
        given = config.get("optimizer", {}).get("params", AUTO)
        given = {} if given == AUTO else given
        values["optimizer", "params", "torch_adam"] = given.get("torch_adam", True)
        if get_accelerator().device_name() == "cuda" and not HOW & {*given, *settings.optimizer_params}:
            # reads and writes each number once, and takes no memory besides
            values["optimizer", "params", "fused"] = True
    return values


def fill_ds_config(config: dict[str, Any], settings: EngineSettings) -> dict[str, Any]:
    """The configuration with every "auto" filled in.

    Raises:
        DeepSpeedConfigError: naming every value that is neither "auto" nor what the recipe says, and every "auto"
            that the recipe does not decide.
    """
    sections = ("zero_optimization", "optimizer", "bf16", "fp16", "torch_autocast", "data_types")
    if wrong := [key for key in sections if not section_or_auto(config, key)]:
        raise DeepSpeedConfigError("\n".join(f"{key} must be a section, not {config[key]!r}" for key in wrong))
    filled, problems = copy.deepcopy(config), zero_problems(config)
    for path, value in decided_values(config, settings).items():
        section = filled
        for key in path[:-1]:
            if section.get(key, AUTO) == AUTO:
                section[key] = {}
            section = section[key]
        given = section.get(path[-1], AUTO)
        if given != AUTO and given != value:
            name = ".".join(path)
            problems.append(f"{name} is {given!r} in the DeepSpeed file and {value!r} by the recipe: write auto")
        section[path[-1]] = value
    problems += slips(config) + unwatched(config) + unparted(config, settings.optimizer)
    problems += [f"{key} is auto, but the recipe does not decide it: give a value" for key in remaining_autos(filled)]
    if problems:
        raise DeepSpeedConfigError("\n".join(problems))
    filled.setdefault("steps_per_print", 10**12)
    filled.setdefault("zero_allow_untested_optimizer", True)  # `check_optimizer` has looked at it
    return filled


def zero_problems(config: dict[str, Any]) -> list[str]:
    """What DeepSpeed's own schema of ZeRO refuses."""
    zero = {key: value for key, value in config.get("zero_optimization", {}).items() if value != AUTO}
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        where = [(".".join(map(str, ("zero_optimization", *e["loc"]))), e) for e in error.errors()]
        return [f"{key} is {e['input']!r}: {e['msg'][0].lower()}{e['msg'][1:]}" for key, e in where]
    return []


def slips(config: dict[str, Any]) -> list[str]:
    """Keys that DeepSpeed would pass over in silence, though they look like one that the recipe decides."""
    decided = ("gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu", "optimizer")
    known = (*decided, "zero_optimization", "bf16", "fp16", "data_types", "torch_autocast")
    near = {key: difflib.get_close_matches(key, known, 1, cutoff=0.8) for key in config if key not in known}
    return [f"{key}: unknown key; did you mean {names[0]}?" for key, names in near.items() if names]


def unwatched(config: dict[str, Any]) -> list[str]:
    """Keys by which DeepSpeed would take steps whose gradients are not finite."""
    needed = (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm"))
    return [
        f"{section}.{key} is false: steps whose gradients are not finite would be taken; leave it out"
        for section, key in needed
        if config.get(section, {}).get(key) is False
    ]


def unparted(config: dict[str, Any], optimizer: str) -> list[str]:
    """An optimizer of which DeepSpeed cannot offload a part."""
    ratio = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("ratio", 1.0)
    key = f"zero_optimization.offload_optimizer.ratio is {ratio}"
    if ratio == 1.0 or not offloads(config):
        return []
    if stage_of(config) != 3:
        return [f"{key}, but DeepSpeed offloads a part at stage 3 alone: leave it out"]
    return (
        [] if optimizer in ("Adam", "AdamW") else [f"{key}, but DeepSpeed can part only Adam and AdamW: leave it out"]
    )


def section_or_auto(config: dict[str, Any], key: str) -> bool:
    """Whether a key is absent, a section, or optimizer: auto."""
    value = config.get(key, {})
    return isinstance(value, dict) or (key == "optimizer" and value == AUTO)


def remaining_autos(config: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys whose value is still "auto"."""
    found = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += remaining_autos(value, f"{prefix}{key}.")
        elif value == AUTO:
            found.append(prefix + key)
    return found
