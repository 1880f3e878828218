"""Create learning-rate schedules of DeepSpeed and torch by name."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from deepspeed.runtime import lr_schedules

DEEPSPEED_SCHEDULES = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest")
WARM_UPS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
REHEARSED = 100_000  # steps: about a second
# base classes, and one that needs a metric in every step
NO_SCHEDULES = ("LRScheduler", "_LRScheduler", "ReduceLROnPlateau")


class ScheduleError(ValueError):
    """Raised if a learning rate schedule is unknown or does not accept its arguments; the message is one line for
    the user."""


def make_scheduler(name: str, params: dict[str, object], total_steps: int) -> Callable[[torch.optim.Optimizer], object]:
    """Return a function that makes a learning rate schedule from an optimizer.

    Args:
        name: a class of DeepSpeed's ``lr_schedules`` or of ``torch.optim.lr_scheduler``.
        params: arguments of the schedule. Defaults: ``total_num_steps`` is ``total_steps`` (one more for
            WarmupDecayLR), ``warmup_num_steps`` is a tenth of ``total_steps``, at most 1,000, and ``warmup_max_lr`` is
            the optimizer's learning rate.
        total_steps: optimizer steps of the run.

    Raises:
        ScheduleError: the schedule is unknown (similar names are suggested), or does not accept its arguments.
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
    if wrong := unchecked_argument(params):
        raise ScheduleError(f"schedule.params: {wrong}")
    if (kind := params.get("warmup_type", "log")) not in ("log", "linear"):
        # DeepSpeed would use log
        raise ScheduleError(f"schedule.params: warmup_type must be log or linear, got {kind!r}")
    by_default = {
        "total_num_steps": total_steps + (name == "WarmupDecayLR"),  # at total_num_steps its rate is 0
        "warmup_num_steps": max(1, min(1000, total_steps // 10)),
        "warmup_max_lr": None,  # the optimizer's learning rate; WarmupDecayLR's own default is 0.001
    }
    params = {p: value for p, value in by_default.items() if p in accepted} | params

    def make(optimizer: torch.optim.Optimizer) -> object:
        schedule = known[name](optimizer, **params)
        if name in WARM_UPS:
            # They begin at iteration -1, and its rate is 0 like that of iteration 0: two steps would train nothing.
            schedule.step(1)
        return schedule

    try:
        rates(make, (1, 2, total_steps + 1))  # some schedules fail only at the last step
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
        raise ScheduleError(
            f"schedule.params: {name} cannot be created with {params}: {error}: change or remove that argument"
        ) from None
    return make


def unchecked_argument(params: dict[str, object]) -> str | None:
    """Return an error line about the first wrong value that a learning rate schedule's constructor would silently
    accept; None if all are right.

    Args:
        params: arguments of the schedule, by name.
    """
    total, milestones = params.get("total_num_steps", 1), params.get("milestones", [])
    if not isinstance(total, int) or total < 1:
        return f"total_num_steps must be a whole number of at least 1, got {total!r}"
    if not isinstance(milestones, list) or not all(isinstance(step, int) for step in milestones):
        return f"milestones must be a list of steps, got {milestones!r}"
    return None


def rates(make: Callable[[torch.optim.Optimizer], object], steps: Sequence[int]) -> list[float]:
    """Return a schedule's learning rates at some steps, as fractions of the optimizer's learning rate.

    Args:
        make: function that makes the schedule from an optimizer.
        steps: numbers of the steps, ascending from 1. torch's schedules are only approximate at a step long after the
            previous one.
    """
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, at, found = cast(Any, make(optimizer)), 1, []
    with warnings.catch_warnings(action="ignore"):  # torch warns that the optimizer takes no steps
        for step in steps:
            if step > at:
                advance(schedule, step - at)
            at = step
            found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def advance(schedule: Any, steps: int) -> None:
    """Advance a learning rate schedule by a number of steps: DeepSpeed's in one call, torch's step by step.

    torch computes each rate from the previous one, so its schedules cannot skip steps; only the first ``REHEARSED``
    steps are taken, and the step counter is set for the others.

    Args:
        schedule: the schedule, changed in place.
        steps: number of optimizer steps.
    """
    if hasattr(schedule, "last_batch_iteration"):
        schedule.step(schedule.last_batch_iteration + steps)
        return
    for _ in range(min(steps, REHEARSED)):
        schedule.step()
    if steps > REHEARSED:
        schedule.last_epoch += steps - REHEARSED - 1
        schedule.step()
