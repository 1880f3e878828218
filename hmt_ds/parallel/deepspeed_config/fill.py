"""Read a DeepSpeed file (ds_configs/*.json), fill in the values that the recipe decides, and check the result."""

import copy
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from hmt_ds.parallel.deepspeed_config.keys import nvme_problems, refusal, unknown_keys

AUTO = "auto"
DsConfig = dict[str, Any]  # a file of ds_configs/, as JSON gives it
# arguments that choose how Adam's step is computed, not what it computes
ADAM_IMPLEMENTATION = {"torch_adam", "foreach", "fused", "capturable", "differentiable"}
DECIDED_ELSEWHERE = {
    "train_batch_size": "training.batch_size, training.gradient_accumulation and the number of ranks decide it",
    "scheduler": "the recipe's section schedule decides it",
}
# keys whose value must be a section, and the one other value that each may have
SECTIONS: dict[tuple[str, ...], object] = {
    ("zero_optimization",): {},
    ("zero_optimization", "offload_optimizer"): None,
    ("zero_optimization", "offload_param"): None,
    ("optimizer",): AUTO,
    ("optimizer", "params"): AUTO,
    ("bf16",): {},
    ("fp16",): {},
    ("torch_autocast",): {},
    ("data_types",): {},
}
BUCKET = 2 * 10**8  # gradients in a bucket: enough for the network's full speed


class DeepSpeedConfigError(ValueError):
    """Raised if a DeepSpeed file is unreadable, contradicts the recipe or is refused by DeepSpeed; one line per
    problem."""


@dataclass(frozen=True)
class EngineSettings:
    """The values of a DeepSpeed configuration that the recipe decides.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: rows (sequences) per rank.
        gradient_accumulation: truncated-BPTT windows per optimizer step; DeepSpeed is later given the number of
            backward passes instead.
        gradient_clipping: maximum norm of the gradient; 0 for no clipping.
        optimizer: DeepSpeed's name of the optimizer.
        optimizer_params: arguments of the optimizer.
    """

    precision: str
    batch_size: int
    gradient_accumulation: int
    gradient_clipping: float
    optimizer: str
    optimizer_params: dict[str, object]


def read_ds_config(file: str | Path) -> DsConfig:
    """Read a DeepSpeed configuration file (JSON) as nested dicts.

    Raises:
        DeepSpeedConfigError: if the file cannot be read or is not a JSON object.
    """
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (OSError, RecursionError, ValueError) as error:
        raise DeepSpeedConfigError(
            f"{file}: cannot be read as JSON ({error}): repair it, or take one of ds_configs/"
        ) from None
    if not isinstance(config, dict):
        raise DeepSpeedConfigError(f"{file}: must hold a JSON object with the keys of a DeepSpeed configuration")
    return config


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build a dict from the pairs of a JSON object and refuse repeated keys; for ``json.loads(object_pairs_hook=...)``.

    Args:
        pairs: keys and values of the object, in the order of the file.

    Raises:
        ValueError: a key is given twice; ``json`` alone would silently keep the last value.
    """
    section = dict(pairs)
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"{', '.join(twice)} given twice: leave one out")
    return section


def section_of(config: DsConfig, *path: str) -> DsConfig:
    """Return the section (nested dict) of a DeepSpeed configuration that the keys ``path`` lead to, outermost first; an
    empty dict if there is none."""
    section = config
    for key in path:
        section = section.get(key, {})
        if not isinstance(section, dict):
            return {}
    return section


def stage_of(config: DsConfig) -> int:
    """Return the ZeRO stage of a DeepSpeed configuration, 0 to 3."""
    return section_of(config, "zero_optimization").get("stage", 0)


def computes_in_autocast(config: DsConfig, precision: str) -> bool:
    """Return whether weights stay in fp32 and torch.autocast lowers the precision (to ``bf16`` or ``fp16``).

    True where DeepSpeed cannot sum low-precision gradients in fp32: at stage 0, and at stages 1 and 2 with the
    optimizer offloaded; False for ``fp32``. At stage 0 this takes no more memory than low-precision weights, which need
    fp32 copies of weights and gradients besides.
    """
    stage = stage_of(config)
    return precision != "fp32" and (stage == 0 or (stage in (1, 2) and offloads(config)))


def offloads(config: DsConfig) -> bool:
    """Return whether a DeepSpeed configuration keeps the optimizer's states in host memory (``offload_optimizer``)."""
    return section_of(config, "zero_optimization", "offload_optimizer").get("device", "none") != "none"


def share_on_gpu(config: DsConfig) -> float:
    """Return the fraction (0 to 1) of the optimizer's states on the GPU, according to a DeepSpeed configuration.

    It is between 0 and 1 if ZeRO-3 offloads a part to the host.
    """
    if not offloads(config):
        return 1.0
    return 1.0 - offload_ratio(config) if stage_of(config) == 3 else 0.0


def with_bucket(config: DsConfig, trained: int, *, once: bool) -> DsConfig:
    """Return a DeepSpeed configuration with smaller gradient buckets (``reduce_bucket_size``), unless the file sets
    them.

    DeepSpeed allocates two buckets per dtype and sums in a third one, of 5e8 gradients each, even if far fewer are
    trained (LoRA).

    Args:
        config: DeepSpeed's configuration.
        trained: number of trained parameters.
        once: whether gradients are reduced once per step; buckets can then be smaller without costing speed.
    """
    zero = dict(config.get("zero_optimization", {}))
    zero.setdefault("reduce_bucket_size", min(trained, BUCKET if once else DeepSpeedZeroConfig().reduce_bucket_size))
    return config | {"zero_optimization": zero}


def decided_values(config: DsConfig, settings: EngineSettings) -> dict[tuple[str, ...], object]:
    """Return the values of a DeepSpeed configuration that the recipe decides, by path, such as ``("optimizer",
    "type")``.

    Args:
        config: DeepSpeed's configuration as the file has it.
        settings: the recipe's values.
    """
    autocast = computes_in_autocast(config, settings.precision)
    low = "" if autocast else settings.precision
    values: dict[tuple[str, ...], object] = {
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
        # torch's Adam needs no compiler; with offloading, DeepSpeed's own Adam for CPUs is several times faster
        given = section_of(config, "optimizer", "params")
        values["optimizer", "params", "torch_adam"] = given.get("torch_adam", True)
        if get_accelerator().device_name() == "cuda" and not ADAM_IMPLEMENTATION & {*given, *settings.optimizer_params}:
            # one kernel reads and writes everything once and needs no temporary memory
            values["optimizer", "params", "fused"] = True
    return values


def fill_ds_config(config: DsConfig, settings: EngineSettings) -> DsConfig:
    """Return a DeepSpeed configuration with every "auto" replaced by the recipe's value.

    Args:
        config: DeepSpeed's configuration as the file has it.
        settings: the recipe's values.

    Raises:
        DeepSpeedConfigError: naming every value that is neither "auto" nor the recipe's, every "auto" that the recipe
            does not decide, and everything else that DeepSpeed would ignore or refuse.
    """
    if wrong := not_sections(config):
        raise DeepSpeedConfigError("\n".join(wrong))
    filled = copy.deepcopy({key: value for key, value in config.items() if key not in DECIDED_ELSEWHERE})
    problems = zero_problems(config)
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
    problems += [f"{key}: {why}, leave it out" for key, why in DECIDED_ELSEWHERE.items() if key in config]
    problems += unknown_keys(config) + overflow_problems(config) + nvme_problems(config)
    problems += partial_offload_problems(config, settings.optimizer)
    problems += [f"{key} is auto, but the recipe does not decide it: give a value" for key in remaining_autos(filled)]
    if problems := problems or refusal(filled):
        raise DeepSpeedConfigError("\n".join(problems))
    filled.setdefault("steps_per_print", 10**12)
    filled.setdefault("zero_allow_untested_optimizer", True)  # `check_optimizer` tests it
    return filled


def zero_problems(config: DsConfig) -> list[str]:
    """Return an error line for each problem of a DeepSpeed configuration's ``zero_optimization`` section: a value that
    DeepSpeed refuses, or a number in quotes."""
    zero = {key: value for key, value in section_of(config, "zero_optimization").items() if value != AUTO}
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        where = [(".".join(map(str, ("zero_optimization", *e["loc"]))), e) for e in error.errors()]
        return [f"{key} is {e['input']!r}: {e['msg'][0].lower()}{e['msg'][1:]}" for key, e in where]
    numbers = {"stage": stage_of(config), "offload_optimizer.ratio": offload_ratio(config)}
    return [
        f"zero_optimization.{key} is {value!r}: must be a number, without quotes"
        for key, value in numbers.items()
        if value != AUTO and (isinstance(value, bool) or not isinstance(value, int | float))
    ]


def offload_ratio(config: DsConfig) -> float:
    """Return the fraction (0 to 1) of an offloaded optimizer's states in host memory, by a DeepSpeed configuration.

    It is 1 unless the configuration sets ``ratio``.
    """
    return section_of(config, "zero_optimization", "offload_optimizer").get("ratio", 1.0)


def overflow_problems(config: DsConfig) -> list[str]:
    """Return an error line for each DeepSpeed setting that would let a step with non-finite gradients update the
    weights."""
    needed = (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm"))
    return [
        f"{section}.{key} is false: steps whose gradients are not finite would be taken; leave it out"
        for section, key in needed
        if config.get(section, {}).get(key) is False
    ]


def partial_offload_problems(config: DsConfig, optimizer: str) -> list[str]:
    """Return an error line where DeepSpeed ignores or cannot do partial offload (``offload_optimizer.ratio`` below 1)
    with the optimizer of the given name."""
    ratio = offload_ratio(config)
    key = f"zero_optimization.offload_optimizer.ratio is {ratio}"
    if ratio == 1.0 or not offloads(config):
        return []
    if stage_of(config) != 3:
        return [f"{key}, but DeepSpeed offloads a part only at ZeRO stage 3: leave it out"]
    if optimizer not in ("Adam", "AdamW"):
        return [f"{key}, but DeepSpeed can split only Adam and AdamW, not {optimizer}: leave it out"]
    return []


def not_sections(config: DsConfig) -> list[str]:
    """Return an error line for each key of a DeepSpeed configuration that must hold a JSON object and holds another
    value."""
    found = [(path, section_of(config, *path[:-1]).get(path[-1], {})) for path in SECTIONS]
    return [
        f"{'.'.join(path)} must be a section like {{...}}, not {json.dumps(value)}"
        for path, value in found
        if not isinstance(value, dict) and value != SECTIONS[path]
    ]


def remaining_autos(config: DsConfig, prefix: str = "") -> list[str]:
    """Return the dotted keys of a DeepSpeed configuration whose value is still "auto".

    Args:
        config: the configuration, or a section of it.
        prefix: dotted path of the section, put before its keys.
    """
    found = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += remaining_autos(value, f"{prefix}{key}.")
        elif value == AUTO:
            found.append(prefix + key)
    return found
