"""Is this an optimizer that DeepSpeed can make? Asked before anything starts."""

import difflib
import inspect
from typing import Any

import torch
from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS


class OptimizerError(ValueError):
    """An unknown optimizer, or arguments that it does not take."""


def check_optimizer(name: str, lr: float, weight_decay: float, params: dict[str, Any]) -> None:
    """Make an optimizer of that name, of torch or known to DeepSpeed, once for nothing.

    Raises:
        OptimizerError: in one line, with near names.
    """
    if doubled := [key for key in ("lr", "weight_decay") if key in params]:
        raise OptimizerError(f"optimizer.params: {' and '.join(doubled)} stand directly under optimizer")
    known: dict[str, Any] = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c)}
    if name not in known:
        if name.lower() in DEEPSPEED_OPTIMIZERS:
            return
        near = difflib.get_close_matches(name, [*known, "Lamb", "Lion", "Muon"], 1)
        hint = f"did you mean {near[0]}?" if near else "for example AdamW"
        raise OptimizerError(f"optimizer.name: {name} is no optimizer of DeepSpeed or torch; {hint}")
    try:
        known[name]([torch.zeros(1, requires_grad=True)], lr=lr, weight_decay=weight_decay, **params)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"optimizer.params: {name} does not take {params}: {error}") from None
