"""Check an optimizer's name and arguments before a run starts."""

import difflib
import inspect
import re

import torch
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import FusedLion
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

# Elementwise: they update a part of a weight, as ZeRO shards it, like the whole weight.
ELEMENTWISE = re.compile(r"(?i)ada(delta|grad|max)|n?adam|adamw|asgd|lion|radam|rmsprop|rprop|sgd")
OF_DEEPSPEED = {"Lamb": FusedLamb, "Lion": FusedLion}
NEEDS_MUP = ("muadam", "muadamw", "musgd")
SWITCHES = ("amsgrad", "capturable", "centered", "decoupled_weight_decay", "foreach", "fused", "maximize", "nesterov")
UNUSABLE = ("LBFGS", "SparseAdam", "Optimizer")  # need a closure or sparse gradients; the base class


class OptimizerError(ValueError):
    """Raised if an optimizer is unknown or does not accept its arguments; the message has a line for each problem."""


def check_optimizer(name: str, lr: float, weight_decay: float, params: dict[str, object], stage: int) -> None:
    """Check that torch or DeepSpeed has the named optimizer and that it accepts the arguments, by creating one.

    Args:
        name: class name of the optimizer.
        lr: learning rate.
        weight_decay: weight decay, which each step multiplies by the learning rate.
        params: further arguments of the optimizer's constructor.
        stage: the ZeRO stage, 0 to 3.

    Raises:
        OptimizerError: the optimizer is unknown (similar names are suggested) or refuses an argument; a line per
            problem.
    """
    if doubled := [key for key in ("lr", "weight_decay") if key in params]:
        raise OptimizerError(f"optimizer.params: {' and '.join(doubled)} must be keys of optimizer: move them up")
    if reason := why_unusable(name, stage):
        raise OptimizerError(f"optimizer.name: {name}: {reason}: use AdamW")
    known: dict[str, type] = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and n not in UNUSABLE}
    if name not in known and name.lower() not in DEEPSPEED_OPTIMIZERS:
        near = difflib.get_close_matches(name, [*known, "Lamb", "Lion"], 1)
        hint = f"did you mean {near[0]}?" if near else "for example AdamW"
        raise OptimizerError(f"optimizer.name: {name} is not an optimizer of DeepSpeed or torch; {hint}")
    if stage and not ELEMENTWISE.fullmatch(name):
        why = f"{name} must see whole weights, but at ZeRO stage {stage} the optimizer gets only shards"
        raise OptimizerError(f"optimizer.name: {why}: use AdamW, or ds_configs/zero0.json")
    made = {n.lower(): c for n, c in (known | OF_DEEPSPEED).items()}.get(name.lower())
    if made is None:
        return
    if problems := [*wrong_tuples(name, made, params), *wrong_switches(params)]:
        raise OptimizerError("\n".join(problems))
    try:
        if made in OF_DEEPSPEED.values():  # making one would compile its kernels
            inspect.signature(made).bind([], lr=lr, weight_decay=weight_decay, **params)
        else:
            made([torch.zeros(1, requires_grad=True)], lr=lr, weight_decay=weight_decay, **params)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptimizerError(
            f"optimizer.params: {name} does not take {params}: {error}: change or remove that argument"
        ) from None


def why_unusable(name: str, stage: int) -> str | None:
    """Return why an optimizer of DeepSpeed or bitsandbytes cannot be used with hmt_ds; None if it can, or is unknown.

    Args:
        name: name of the optimizer.
        stage: the ZeRO stage, 0 to 3.
    """
    if name.lower() == "muon":
        # read in DeepSpeed 0.19.8: Muon.step of stage 0 replaces missing gradients by zeros
        early = (
            "DeepSpeed orthogonalizes the gradient before its norm is taken and clipped, so the update would be clipped"
        )
        return f"{early} (ZeRO stage {stage})" if stage else "at ZeRO stage 0 it changes weights in skipped steps too"
    if name.lower() in NEEDS_MUP:
        return "it needs the base shapes of the package mup, which hmt_ds does not set"
    if re.fullmatch(r"(?i)(paged)?\w+_?(8bit|32bit)", name):
        return (
            "bitsandbytes stores its states in blocks with one scale each, but checkpoints by element, so no run could "
            "be resumed exactly"
        )
    return None


def wrong_tuples(name: str, optimizer: type, params: dict[str, object]) -> list[str]:
    """Return an error line for each tuple argument of an optimizer (such as betas) that has the wrong length, which
    torch's constructors do not check.

    Args:
        name: class name of the optimizer.
        optimizer: class of the optimizer.
        params: arguments of the optimizer.
    """
    defaults = {key: parameter.default for key, parameter in inspect.signature(optimizer).parameters.items()}
    tuples = {key: default for key, default in defaults.items() if isinstance(default, tuple) and key in params}
    return [
        f"optimizer.params.{key} is {params[key]}: {name} takes {len(default)} numbers, as {list(default)}"
        for key, default in tuples.items()
        if not isinstance(given := params[key], list | tuple) or len(given) != len(default)
    ]


def wrong_switches(params: dict[str, object]) -> list[str]:
    """Return an error line for each on/off argument of an optimizer that is neither true nor false, such as the text
    "false".

    Args:
        params: arguments of the optimizer.
    """
    return [
        f"optimizer.params.{key} is {params[key]!r}: must be true or false"
        for key in SWITCHES
        if not isinstance(params.get(key, True), bool)
    ]
