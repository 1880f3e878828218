"""Is this an optimizer that DeepSpeed can make? Asked before anything starts."""

import difflib
import inspect
import re
from typing import Any

import torch
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import FusedLion
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

# Each number by itself, so that pieces of weights, as ZeRO has them, are treated like whole ones.
ELEMENTWISE = re.compile(r"(?i)ada(delta|grad|max)|n?adam|adamw|asgd|lion|radam|rmsprop|rprop|sgd")
OF_DEEPSPEED = {"Lamb": FusedLamb, "Lion": FusedLion}
OTHER_STEPS = ("LBFGS", "SparseAdam", "Optimizer")  # torch's, which want what no model here gives them


class OptimizerError(ValueError):
    """An unknown optimizer, or arguments that it does not take."""


def check_optimizer(name: str, lr: float, weight_decay: float, params: dict[str, Any], stage: int) -> None:
    """Make an optimizer of that name, of torch or known to DeepSpeed, once for nothing.

    Args:
        stage: ZeRO's.

    Raises:
        OptimizerError: a line for each problem, with near names.
    """
    if doubled := [key for key in ("lr", "weight_decay") if key in params]:
        raise OptimizerError(f"optimizer.params: {' and '.join(doubled)} stand directly under optimizer")
    known: dict[str, Any] = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and n not in OTHER_STEPS}
    if name not in known and name.lower() not in DEEPSPEED_OPTIMIZERS:
        near = difflib.get_close_matches(name, [*known, "Lamb", "Lion", "Muon"], 1)
        hint = f"did you mean {near[0]}?" if near else "for example AdamW"
        raise OptimizerError(f"optimizer.name: {name} is no optimizer of DeepSpeed or torch; {hint}")
    if stage and not ELEMENTWISE.fullmatch(name):
        why = f"{name} looks at whole weights, and ZeRO stage {stage} cuts them into pieces"
        raise OptimizerError(f"optimizer.name: {why}: take AdamW, or ds_configs/zero0.json")
    made = {n.lower(): c for n, c in (known | OF_DEEPSPEED).items()}.get(name.lower())
    if made is None:
        return
    if problems := wrong_tuples(name, made, params):
        raise OptimizerError("\n".join(problems))
    try:
        if made in OF_DEEPSPEED.values():  # making one would compile it
            inspect.signature(made).bind([], lr=lr, weight_decay=weight_decay, **params)
        else:
            made([torch.zeros(1, requires_grad=True)], lr=lr, weight_decay=weight_decay, **params)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptimizerError(f"optimizer.params: {name} does not take {params}: {error}") from None


def wrong_tuples(name: str, optimizer: Any, params: dict[str, Any]) -> list[str]:
    """Arguments of several numbers, as betas, that have another number of them: constructors do not look."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(optimizer).parameters.items()}
    tuples = {key: default for key, default in defaults.items() if isinstance(default, tuple) and key in params}
    return [
        f"optimizer.params.{key} is {params[key]}: {name} takes {len(default)} numbers, as {list(default)}"
        for key, default in tuples.items()
        if not isinstance(params[key], list | tuple) or len(params[key]) != len(default)
    ]
