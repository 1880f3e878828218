"""Tasks evaluated every few steps, on two ranks at ZeRO-3 and on two pipeline stages: the training does not change."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from tiny_recipe import VOCABULARY, make_materials, run_module, train, write_recipe

from hmt_ds.data import train_sentencepiece
from hmt_ds.reporting.metrics import read_metrics

LAYOUTS = {"ZeRO-3": (3, ()), "pipeline": (1, ("--pipeline.stages", "2"))}
STEPS = 24
# only the answers are learnt, so that some places are guessed right
LEARNT = ("--memory.interface", "adapted", "--training.steps", str(STEPS), "--checkpoint.every", "8")
LEARNT += ("--training.batch_size", "4", "--training.bptt_depth", "4", "--model.source.initializer_range", "0.1")
LEARNT += ("--optimizer.lr", "0.03", "--optimizer.params", "{betas: [0.9, 0.95]}")
LEARNT += ("--schedule.params", f"{{warmup_num_steps: 3, total_num_steps: {STEPS}}}")
ASKED = ("--evaluation.tasks", "[babilong-qa1]", "--evaluation.tasks_lengths", "[40, 90]")
ASKED += ("--evaluation.tasks_documents", "12", "--evaluation.tasks_every", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer, and documents of a task to train on."""
    folder = tmp_path_factory.mktemp("tasks")
    make_materials(folder)
    words = ["--tokenizer", str(folder / "tokenizer"), "--lengths", "40", "--documents", "200"]
    assert run_command("tasks", "babilong-qa1", *words, "--output", str(folder / "qa1.jsonl"))[0] == 0
    # answers are words of the tokenizer, so that some are guessed soon
    train_sentencepiece([folder / "qa1.jsonl"], folder / "words", VOCABULARY)
    return folder


def learn(folder: Path, layout: str, name: str, *more: str) -> Path:
    """Train on the answers to a task; return the run's folder."""
    stage, stages = LAYOUTS[layout]
    source = json.dumps({"source": str(folder / "qa1.jsonl"), "format": "questions"})
    words = ("--data.train", source, "--model.tokenizer", str(folder / "words"))
    run = folder / f"{layout} {name}"
    code, printed = train(write_recipe(folder, stage), run, *LEARNT, *stages, *words, *more)
    assert code == 0, printed
    return run


def steps_of(run: Path) -> list[tuple[Any, ...]]:
    """What training has given at each step."""
    names = ("step", "loss", "gradient_norm", "recall_distance")
    return [tuple(row[name] for name in names) for row in read_metrics(run / "metrics.jsonl")]


def figures_of(run: Path) -> dict[int, dict[str, float]]:
    """The figures of each evaluation."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row.pop("step"): row for row in rows if "loss" not in row}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tasks_in_a_run(folder, layout):
    """With and without them the steps are the same, bit for bit; a run that was stopped goes on with both the same."""
    plain, asked = learn(folder, layout, "plain"), learn(folder, layout, "asked", *ASKED)
    assert steps_of(plain) == steps_of(asked) and len(steps_of(asked)) == STEPS
    assert figures_of(plain) == {}
    found = figures_of(asked)
    names = [f"evaluation/babilong-qa1/{n}" for n in (40, 90)]
    assert list(found) == [12, STEPS] and list(found[12]) == names
    assert set(found[STEPS]) == {*names, *(f"{name}/{how}" for name in names for how in ("swapped", "empty"))}
    assert all(0 < found[STEPS][name] < 0.7 for name in names)

    learn(folder, layout, "parts", *ASKED, "--training.steps", "13")
    parts = learn(folder, layout, "parts", *ASKED, "--checkpoint.resume", "auto")
    assert steps_of(parts) == steps_of(asked)
    assert {step: one for step, one in figures_of(parts).items() if step % 12 == 0} == found

    stored = asked / "evaluation/tasks_step_000024.json"
    content = json.loads(stored.read_text())
    assert [row["right"]["memory"][0] for row in content["tasks"]] == [found[STEPS][name] for name in names]
    assert stored.with_suffix(".png").exists()
    stored.unlink()
    # one process, and whole layers: the same answers
    options = ("--pipeline.stages", "1", "--deepspeed", "ds_configs/zero1.json", "--training.batch_size", "5")
    code, printed = run_module("hmt_ds.evaluate", str(asked), *options, ranks=1)
    assert code == 0, printed
    again = json.loads(stored.read_text())
    assert again["data"] == content["data"]
    assert [row["right"]["memory"] for row in again["tasks"]] == [row["right"]["memory"] for row in content["tasks"]]
    assert [row["right"]["empty"] for row in again["tasks"]] == [row["right"]["empty"] for row in content["tasks"]]


def test_the_command_finds_as_many_right_answers(folder):
    """`hmt-ds evaluate --tasks` generates the answers: those that the run has found right, name the right word."""
    run = folder / "ZeRO-3 asked"
    words = ["--tasks", "babilong-qa1", "--lengths", "40,90", "--samples", "12", "--json", str(folder / "asked.json")]
    code, printed = run_command("evaluate", str(run), *words)
    assert code == 0, printed
    answers = json.loads((folder / "asked.json").read_text())["answers"]
    for length in (40, 90):
        right = [one["right"] for one in answers if (one["reading"], one["length"]) == ("memory", length)]
        assert sum(right) / 12 == pytest.approx(figures_of(run)[STEPS][f"evaluation/babilong-qa1/{length}"])
