"""Learning rate schedules of DeepSpeed and torch, by name."""

import difflib
import inspect
import warnings
from collections.abc import Callable

import torch
from deepspeed.runtime import lr_schedules

DEEPSPEED_SCHEDULES = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest")
# base classes, and one that needs a metric in every step
NO_SCHEDULES = ("LRScheduler", "_LRScheduler", "ReduceLROnPlateau")


class ScheduleError(ValueError):
    """The schedule is unknown or does not take these arguments."""


def make_scheduler(name: str, params: dict[str, object], total_steps: int) -> Callable[[torch.optim.Optimizer], object]:
    """Return a function that makes the schedule from an optimizer.

    Args:
        name: a class of DeepSpeed's ``lr_schedules`` or of ``torch.optim.lr_scheduler``.
        params: its arguments. Unless given, ``total_num_steps`` is ``total_steps``, and ``warmup_num_steps`` a tenth of
            that, at most 1,000; ``warmup_max_lr`` is the optimizer's rate.
        total_steps: optimizer steps of the run.

    Raises:
        ScheduleError: in one line, with similar names.
    """
    known = {n: getattr(lr_schedules, n) for n in DEEPSPEED_SCHEDULES}
    for n, c in vars(torch.optim.lr_scheduler).items():
        if inspect.isclass(c) and issubclass(c, torch.optim.lr_scheduler.LRScheduler) and n not in NO_SCHEDULES:
            known.setdefault(n, c)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(DEEPSPEED_SCHEDULES)}, or torch's"
        raise ScheduleError(f"schedule.name: {name} is not a schedule of DeepSpeed or torch; {hint}")
    accepted = [p for p in inspect.signature(known[name]).parameters if p != "optimizer"]
    if unknown := [p for p in params if p not in accepted]:
        raise ScheduleError(f"schedule.params: {name} takes no {', '.join(unknown)}; it takes {', '.join(accepted)}")
    if (kind := params.get("warmup_type", "log")) not in ("log", "linear"):
        raise ScheduleError(f"schedule.params: warmup_type is log or linear, got {kind!r}")  # DeepSpeed would use log
    by_default = {
        "total_num_steps": total_steps,
        "warmup_num_steps": max(1, min(1000, total_steps // 10)),
        "warmup_max_lr": None,  # the optimizer's learning rate; WarmupDecayLR's own default is 0.001
    }
    params = {p: value for p, value in by_default.items() if p in accepted} | params
    try:
        run_through(known[name](torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0), **params), total_steps)
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise ScheduleError(f"schedule.params: {name} cannot be made of {params}: {error}") from None
    return lambda optimizer: known[name](optimizer, **params)


def run_through(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> None:
    """Take all steps of a run: some schedules fail only at the last one."""
    with warnings.catch_warnings(action="ignore"):  # torch warns that the optimizer takes no steps
        for _ in range(steps):
            schedule.step()
