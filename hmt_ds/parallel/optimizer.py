"""Is this an optimizer that DeepSpeed can make? Asked before anything starts."""

import difflib
import inspect
import re
from typing import Any

import torch
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

# Each number by itself, so that pieces of weights, as ZeRO has them, are treated like whole ones.
ELEMENTWISE = re.compile(r"(?i)ada(delta|grad|max)|n?adam|adamw|asgd|lion|radam|rmsprop|rprop|sgd")
OTHER_STEPS = ("LBFGS", "SparseAdam", "Optimizer")  # torch's, which want what no model here gives them


class OptimizerError(ValueError):
    """An unknown optimizer, or arguments that it does not take."""


def check_optimizer(name: str, lr: float, weight_decay: float, params: dict[str, Any], stage: int) -> None:
    """Make an optimizer of that name, of torch or known to DeepSpeed, once for nothing.

    Args:
        stage: ZeRO's.

    Raises:
        OptimizerError: in one line, with near names.
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
    if name not in known:
        return
    try:
        known[name]([torch.zeros(1, requires_grad=True)], lr=lr, weight_decay=weight_decay, **params)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"optimizer.params: {name} does not take {params}: {error}") from None
