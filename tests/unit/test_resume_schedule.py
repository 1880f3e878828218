"""Resuming with a schedule, an optimizer and a recipe equal to the checkpoint's, or different."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmt_ds.checkpoint import CheckpointError
from hmt_ds.checkpoint.fragments import optimizer_scalars
from hmt_ds.checkpoint.restore import check_identity, restore_engine
from hmt_ds.config.recipe import Recipe
from hmt_ds.distributed.deepspeed_internals import COUNTERS
from hmt_ds.parallel.deepspeed_config.lr_schedule import make_scheduler
from hmt_ds.training.checkpoints import check_rate_jump
from hmt_ds.training.identity import identity
from hmt_ds.training.run_log import describe_rates

STEPS = 8
MILESTONES = {"milestones": [2, 5], "gamma": 0.1}
LINEAR = {"warmup_num_steps": 4, "warmup_type": "linear"}


def engine_of(name: str, params: dict[str, Any], lr: float = 1.0, weight_decay: float = 0.0) -> Any:
    """The members of DeepSpeed's engine that resuming uses, around a real optimizer and a real schedule."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr, weight_decay=weight_decay)
    found: Any = SimpleNamespace(optimizer=optimizer, zero_optimization_stage=lambda: 0)
    found.lr_scheduler = make_scheduler(name, params, STEPS)(optimizer)
    found.torch_autocast_z0_gradscaler = None
    vars(found).update(dict.fromkeys(COUNTERS, 0))
    return found


def rates(engine: Any, steps: int) -> list[float]:
    """Take some steps; return the learning rate of each."""
    found = []
    for _ in range(steps):
        found.append(engine.optimizer.param_groups[0]["lr"])
        engine.optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
        engine.optimizer.step()
        engine.lr_scheduler.step()
    return found


def resume(engine: Any, saved: Any) -> Any:
    """An engine that goes on where another one was saved, through a file's text."""
    state = {"optimizer": optimizer_scalars(saved), "schedule": saved.lr_scheduler.state_dict(), "loss_scaler": {}}
    restore_engine(engine, json.loads(json.dumps(state | {"counters": dict.fromkeys(COUNTERS, 3)})))
    return engine


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_milestones_survive(steps):
    """JSON makes texts of the numbers that they are kept under."""
    saved = engine_of("MultiStepLR", MILESTONES)
    found = rates(saved, steps) + rates(resume(engine_of("MultiStepLR", MILESTONES), saved), STEPS - steps)
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("CosineAnnealingLR", {"T_max": STEPS}),
        ("CosineAnnealingWarmRestarts", {"T_0": 3, "T_mult": 2}),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 2 * STEPS}),
        ("StepLR", {"step_size": 2}),
        ("PolynomialLR", {"total_iters": 6}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3, "cycle_momentum": False}),
        ("WarmupLR", LINEAR),
        ("WarmupDecayLR", LINEAR),
        ("WarmupCosineLR", LINEAR),
        ("LRRangeTest", {"lr_range_test_step_size": 3}),
        ("OneCycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1.0, "cycle_first_step_size": 3}),
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_all_go_on_as_if_nothing_had_happened(name, params, steps):
    whole = rates(engine_of(name, params), STEPS)
    saved = engine_of(name, params)
    before = rates(saved, steps)
    assert before + rates(resume(engine_of(name, params), saved), STEPS - steps) == whole


@pytest.mark.parametrize(
    ("params", "rate", "said"),
    [
        ({"T_max": STEPS}, 0.5, r"base_lrs is \[1\.0\] in the checkpoint, \[0\.5\] by the recipe"),
        ({"T_max": 2 * STEPS}, 1.0, r"T_max is 8 in the checkpoint, 16 by the recipe"),
    ],
)
def test_torchs_go_on_from_the_last_rate(params, rate, said):
    """torch's schedules compute from the last rate, so another base learning rate is refused."""
    saved = engine_of("CosineAnnealingLR", {"T_max": STEPS})
    rates(saved, 3)
    with pytest.raises(CheckpointError, match=rf"^schedule: {said}: use the checkpoint's value, or start a new run$"):
        resume(engine_of("CosineAnnealingLR", params, rate), saved)


@pytest.mark.parametrize(
    ("name", "at_first", "later"),
    [
        ("WarmupLR", [0.25, 0.5, 0.75], [1, 1, 1]),
        (
            "WarmupCosineLR",
            [0.25, 0.5, 0.75],
            [0.0001 + 0.9999 * (1 + math.cos(math.pi * part / 4)) / 2 for part in (1, 2, 3)],
        ),
    ],
)
def test_deepspeeds_take_the_recipes_rate(name, at_first, later):
    """From the first step on, at the shares of the rate that a linear warm-up of four steps has."""
    saved = engine_of(name, LINEAR, 1.0)
    assert rates(saved, 3) == at_first
    found = rates(resume(engine_of(name, LINEAR, 0.2), saved), 3)
    assert found == pytest.approx([0.2 * share for share in later])


def test_the_decay_of_weights_is_the_recipes():
    """All other settings of the optimizer's groups are the checkpoint's."""
    saved = engine_of("WarmupLR", LINEAR, weight_decay=0.1)
    saved.optimizer.param_groups[0]["eps"] = 0.5
    (group,) = resume(engine_of("WarmupLR", LINEAR, weight_decay=0.3), saved).optimizer.param_groups
    assert (group["weight_decay"], group["eps"], group["betas"]) == (0.3, 0.5, (0.9, 0.999))


RECIPE: dict[str, Any] = {
    "model": {"source": {"model_type": "gpt2"}},
    "memory": {"segment_length": 8},
    "data": {"train": {"source": "text.txt"}},
    "training": {"output": "run", "steps": STEPS},
    "optimizer": {"name": "AdamW", "lr": 1e-3, "params": {"betas": [0.9, 0.98]}},
    "schedule": {"name": "WarmupLR", "params": LINEAR},
    "deepspeed": "zero1.json",
}
PREPARED: Any = SimpleNamespace(tokenizer="tokenizer", train=None, sources=())


def compare(folder: Path, changes: dict[str, Any]) -> None:
    """The recipe's checkpoint with a recipe of which some keys have other values."""
    file = folder / "progress.json"
    file.write_text(json.dumps({"identity": identity(Recipe.model_validate(RECIPE), PREPARED)}))
    other = json.loads(json.dumps(RECIPE))
    for key, value in changes.items():
        section, leaf = key.split(".")
        other[section][leaf] = value
    check_identity(folder, identity(Recipe.model_validate(other), PREPARED))


@pytest.mark.parametrize(
    ("key", "value", "there", "here"),
    [
        ("schedule.name", "WarmupCosineLR", "'WarmupLR'", "'WarmupCosineLR'"),
        ("schedule.params", {}, "{'warmup_num_steps': 4, 'warmup_type': 'linear'}", "{}"),
        ("optimizer.params", {"betas": [0.9, 0.95]}, "{'betas': [0.9, 0.98]}", "{'betas': [0.9, 0.95]}"),
        ("optimizer.name", "Adam", "'AdamW'", "'Adam'"),
        ("memory.interface", "adapted", "'paper'", "'adapted'"),
        ("memory.recalled_memories", 2, "1", "2"),
        ("memory.last_memories", 2, "1", "2"),
    ],
)
def test_what_a_resume_cannot_honour_is_refused(tmp_path, key, value, there, here):
    with pytest.raises(CheckpointError) as error:
        compare(tmp_path, {key: value})
    cure = "use the checkpoint's value, or start a new run"
    assert str(error.value) == f"{key} is {there} in {tmp_path}, {here} here: {cure}"


def test_a_checkpoint_without_an_interface_has_the_papers(tmp_path):
    """One that was written before there was another resumes, and not with the adapted one."""
    before = identity(Recipe.model_validate(RECIPE), PREPARED)
    later = tuple(f"memory.{key}" for key in ("interface", "last_memories", "recalled_memories", "recall_loss"))
    old = {key: value for key, value in before.items() if key not in later}
    assert len(old) == len(before) - len(later)
    (tmp_path / "progress.json").write_text(json.dumps({"identity": old}))
    check_identity(tmp_path, before)
    with pytest.raises(CheckpointError, match=r"interface is 'paper' in .*, 'adapted' here"):
        check_identity(tmp_path, before | {"memory.interface": "adapted"})


def test_the_weight_of_the_recalls_loss_may_change(tmp_path):
    compare(tmp_path, {"memory.recall_loss": 0.3})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer.lr": 0.1, "optimizer.memory_lr": 0.2, "optimizer.weight_decay": 0.3},
        {"optimizer.params": {"betas": [0.9, 0.98]}, "training.steps": 2 * STEPS},
    ],
)
def test_what_a_resume_honours_is_let_in(tmp_path, changes):
    compare(tmp_path, changes)


def recipe_of(steps: int, name: str = "WarmupCosineLR", **changes: Any) -> Recipe:
    """The recipe above with other steps and another schedule."""
    params = {"step_size": 2} if name == "StepLR" else {}
    other = {"training": {"output": "run", "steps": steps}, "schedule": {"name": name, "params": params}}
    return Recipe.model_validate(RECIPE | other | changes)


def write_checkpoint(folder: Path, step: int, recipe: Recipe) -> None:
    """Write the part of a checkpoint from which its learning rates are computed."""
    state = {"identity": identity(recipe, PREPARED), "step": step}
    (folder / "progress.json").write_text(json.dumps(state))


@pytest.mark.parametrize(("steps", "step"), [(20, 10), (20, 5), (9, 7)])
@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupDecayLR"])
def test_a_jump_of_the_rate_is_refused(tmp_path, name, steps, step):
    """Another number of steps has another schedule, unless the recipe gives its arguments."""
    write_checkpoint(tmp_path, step, recipe_of(10, name))
    with pytest.raises(CheckpointError) as error:
        check_rate_jump(tmp_path, recipe_of(steps, name))
    said = str(error.value)
    assert f"training.steps is 10 in {tmp_path}, {steps} here" in said and f" at step {step + 1}: " in said
    assert len(said.splitlines()) == 1 and "--checkpoint.rate_jump true" in said
    check_rate_jump(tmp_path, recipe_of(steps, name, checkpoint={"rate_jump": True}))


@pytest.mark.parametrize(
    ("name", "steps", "step"), [("WarmupCosineLR", 10, 10), ("WarmupLR", 20, 10), ("WarmupDecayLR", 1010, 20)]
)
def test_a_rate_that_goes_on_is_let_in(tmp_path, name, steps, step):
    write_checkpoint(tmp_path, step, recipe_of(1000 if steps == 1010 else 10, name))
    check_rate_jump(tmp_path, recipe_of(steps, name, optimizer={"name": "AdamW", "lr": 0.5}))


def test_a_checkpoint_of_before_the_check(tmp_path):
    """It does not tell how many steps its run was to have."""
    (tmp_path / "progress.json").write_text(json.dumps({"identity": {}, "step": 10}))
    check_rate_jump(tmp_path, recipe_of(20))


@pytest.mark.parametrize(
    ("recipe", "first", "said"),
    [
        (recipe_of(10), 11, "all 10 steps are done"),
        (recipe_of(10, "StepLR"), 9, "learning rate: 1e-07 at step 9, 1e-07 at step 10 (StepLR)"),
        (recipe_of(10**9, "StepLR"), 1, "learning rate: 0.001 at step 1 (StepLR)"),
    ],
)
def test_what_the_schedule_will_do_is_said(recipe, first, said):
    assert describe_rates(recipe, first) == said


def test_the_rates_that_are_said_are_those_of_the_steps():
    recipe = recipe_of(8, "WarmupCosineLR")
    expected = rates(engine_of("WarmupCosineLR", {}, recipe.optimizer.lr), 8)
    shown = ", ".join(f"{expected[step - 1]:.3g} at step {step}" for step in (1, 2, 4, 6, 8))
    assert describe_rates(recipe, 1) == f"learning rate: {shown} (WarmupCosineLR)"
