"""Learning rates: what a schedule cannot do is said before the run, and defaults follow its steps."""

import time
from typing import Any

import pytest
import torch

from hmt_ds.parallel.deepspeed_config import lr_schedule
from hmt_ds.parallel.deepspeed_config.lr_schedule import ScheduleError, make_scheduler

STEPS = 50
ONE_CYCLE = {"max_lr": 1.0}


def rates(name: str, params: dict[str, Any], steps: int = STEPS) -> list[float]:
    """Of steps 1 to `steps`, where the optimizer's is 1; as DeepSpeed's engine has them."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make_scheduler(name, params, steps)(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("ReduceLROnPlateau", {}, "schedule.name: ReduceLROnPlateau is not a schedule"),
        ("LRScheduler", {}, "schedule.name: LRScheduler is not a schedule"),
        ("_LRScheduler", {}, "schedule.name: _LRScheduler is not a schedule"),
        ("WarmupLR", {"warmup_type": "linaer"}, "schedule.params: warmup_type must be log or linear, got 'linaer'"),
        ("OneCycleLR", ONE_CYCLE | {"total_steps": STEPS - 1}, "schedule.params: OneCycleLR cannot be created with"),
        ("StepLR", {"step_size": 0}, "schedule.params: StepLR cannot be created with"),
        ("WarmupCosineLR", {"cos_min_ratio": "x"}, "schedule.params: WarmupCosineLR cannot be created with"),
        ("WarmupCosineLR", {"warmup_num_steps": 0}, "schedule.params: WarmupCosineLR cannot be created with"),
    ],
    ids=lambda value: "_".join(value) or None if isinstance(value, dict) else None,
)
def test_refused(name, params, said):
    with pytest.raises(ScheduleError) as error:
        make_scheduler(name, params, STEPS)
    assert str(error.value).startswith(said) and len(str(error.value).splitlines()) == 1


def test_as_many_steps_as_the_run_has_will_do():
    assert len(rates("OneCycleLR", ONE_CYCLE | {"total_steps": STEPS})) == STEPS


def test_rates_of_torch():
    assert rates("StepLR", {"step_size": 2, "gamma": 0.5}, 6) == [1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(("params", "highest"), [({}, [1e-5, 1e-4]), ({"warmup_max_lr": 1e-3}, [1e-3, 1e-3])])
@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR"])
def test_rates_of_the_optimizer_are_the_highest(name, params, highest):
    """optimizer.lr and memory_lr, unless another is given."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (1e-5, 1e-4)]
    optimizer = torch.optim.SGD(groups)
    schedule = make_scheduler(name, params | {"warmup_num_steps": 5}, STEPS)(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(torch.tensor([group["lr"] for group in optimizer.param_groups]))
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(torch.stack(found).amax(dim=0), torch.tensor(highest))


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"])
@pytest.mark.parametrize(
    ("steps", "given", "warmup"),
    [(50, {}, 5), (12000, {}, 1000), (59, {}, 5), (8, {}, 2), (50, {"warmup_num_steps": 10}, 10)],
    ids=["tenth", "at_most_1000", "rounded_down", "two_at_least", "given"],
)
def test_warmup_by_default(name, steps, given, warmup):
    """A tenth of the steps, at most 1,000; DeepSpeed's take two at least. Every step has a rate, the first one too."""
    params = {"warmup_type": "linear"} | given
    found = rates(name, params, steps)
    assert found[: warmup - 1] == pytest.approx([n / warmup for n in range(1, warmup)]) and min(found) > 0
    assert found[warmup - 1 : warmup + 1] == pytest.approx([1.0, 1.0], abs=0.26)
    if name == "WarmupLR":
        assert set(found[warmup:]) == {1.0}


@pytest.mark.parametrize("steps", [lr_schedule.REHEARSED + 1, 10**9, 10**15])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        *((name, {}) for name in ("WarmupCosineLR", "WarmupDecayLR", "LRRangeTest", "ConstantLR", "ExponentialLR")),
        ("StepLR", {"step_size": 1000}),
        ("CosineAnnealingLR", {"T_max": 1000}),
        ("CosineAnnealingWarmRestarts", {"T_0": 1000, "T_mult": 2}),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_very_many_steps_are_checked_at_once(name, params, steps):
    if name == "ExponentialLR":
        params = {"gamma": 0.999}
    began = time.monotonic()
    make_scheduler(name, params, steps)
    assert time.monotonic() - began < 20


def test_what_fails_at_the_last_of_very_many_steps():
    with pytest.raises(ScheduleError, match="OneCycleLR cannot be created with"):
        make_scheduler("OneCycleLR", ONE_CYCLE | {"total_steps": 10**9 - 1}, 10**9)
    make_scheduler("OneCycleLR", ONE_CYCLE | {"total_steps": 10**9}, 10**9)


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "LRRangeTest", "LinearLR"])
def test_rates_of_single_steps(name):
    wanted = (1, 2, 7, STEPS)
    every = rates(name, {})
    assert lr_schedule.rates(make_scheduler(name, {}, STEPS), wanted) == pytest.approx([every[n - 1] for n in wanted])
