"""`hmt-ds evaluate` finds again what a run has found at its end."""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from ranks import PROJECT, cpu_environment
from tiny_recipe import STEPS, make_materials, run_module, train, write_recipe


def evaluate(run: Path) -> subprocess.CompletedProcess[str]:
    """`hmt-ds evaluate` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "hmt_ds.cli", "evaluate", str(run), "--ranks", "2"],
        env=cpu_environment(),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def log_of(printed: str) -> list[str]:
    """Steps and phases in a run's log, without their numbers."""
    lines = re.findall(r"^\S+ \S+ rank 0 INFO (step \d+/\d+|.*: [\d.]+ s$)", printed, re.MULTILINE)
    return [re.sub(r": [\d.]+ s$", ": S s", line) for line in lines]


def test_a_run_is_evaluated_again(tmp_path):
    """On as many ranks to the bit; the table is printed; what is found stays with the run, also if it was moved."""
    make_materials(tmp_path)
    recipe, output = write_recipe(tmp_path, 2), tmp_path / "run"
    values = yaml.safe_load(recipe.read_text())
    values["data"]["validation"], values["evaluation"] = values["data"]["train"], {"segments_read": [1, 2]}
    recipe.write_text(yaml.safe_dump(values))
    code, printed = train(recipe, output)
    file = output / "evaluation" / f"step_{STEPS:06d}.json"
    found = json.loads(file.read_text())
    assert code == 0 and len(found["rows"]) == 2, printed
    assert log_of(printed) == [
        *("reading documents: S s", "building the model: S s"),
        *(f"step {n}/{STEPS}" for n in range(1, 5)),
        "saving step_000004: S s",
        *(f"step {n}/{STEPS}" for n in range(5, 9)),
        "saving step_000008: S s",
        *(f"step {n}/{STEPS}" for n in range(9, 13)),
        "saving step_000012: S s",
        "evaluating: S s",
    ]
    file.unlink()
    run = evaluate(output)
    assert run.returncode == 0 and "held-out perplexity" in run.stdout, run.stdout + run.stderr
    assert json.loads(file.read_text()) == found
    moved = output.rename(tmp_path / "moved")
    (moved / file.relative_to(output)).unlink()
    code, printed = run_module("hmt_ds.evaluate", str(moved))
    assert code == 0 and not output.exists(), printed
    assert json.loads((moved / file.relative_to(output)).read_text()) == found
