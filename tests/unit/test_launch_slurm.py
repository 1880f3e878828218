"""`hmt-ds launch slurm`: the job scripts and the error messages. tests/cluster runs the scripts.

    python tests/unit/test_launch_slurm.py

prints scripts for 1, 8 and 64 nodes.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hmt_ds import cli
from hmt_ds.launch.restarts import main as start

RECIPE = {
    "model": {"source": "./model", "train": "lora"},
    "memory": {"segment_length": 16},
    "data": {"train": {"source": "text.txt"}, "validation": {"source": "held-out.txt"}},
    "training": {"output": "runs/my run", "steps": 3, "seed": 5},
    "optimizer": {"lr": 0.1},
    "deepspeed": "ds_configs/zero2.json",
}
NEEDS_MERGE = "of a LoRA run needs --merge; without it use --what adapter or memory"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> str:
    """Write a recipe to a new working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return "recipe.yaml"


def ask(monkeypatch, capsys, *words: str) -> tuple[int, str, list[str]]:
    """Run the command in this process; return exit code, stdout and error lines."""
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "launch", "slurm", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return end.value.code, said.out, said.err.splitlines()


def scripts_in(printed: str) -> list[str]:
    """Return the scripts that a dry run printed."""
    return ["#!/usr/bin/env bash" + text for text in printed.split("#!/usr/bin/env bash")[1:]]


def options_in(script: str) -> dict[str, str]:
    """Return the sbatch options of a script."""
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^#SBATCH (.*)$", script, flags=re.MULTILINE)]
    assert all(len(words) == 1 for words in lines), lines
    return {key: value for [word] in lines for key, _, value in [word.removeprefix("--").partition("=")]}


def test_elastic(monkeypatch, capsys, recipe):
    words = (recipe, "--nodes", "2-8", "--gpus-per-node", "4", "--dry-run")
    code, _, errors = ask(monkeypatch, capsys, *words)
    assert code == 2 and errors == ["error: --nodes: a range such as 2-8 needs --training.elastic true"]
    code, printed, errors = ask(monkeypatch, capsys, *words, "--training.elastic", "true", "--then", "evaluate")
    train, evaluate = scripts_in(printed)
    assert code == 0 and options_in(train)["nodes"] == "2-8" and options_in(evaluate)["nodes"] == "1"
    assert 'nodes=$(python -m hmt_ds.training.elastic "$SLURM_NNODES" 4 "${recipe[@]}") || exit 2' in train
    assert 'srun --nodes="$nodes" --ntasks=$((nodes * 4)) --relative=0' in train


@pytest.mark.parametrize("nodes", [1, 8, 64])
def test_dry_run(monkeypatch, capsys, recipe, tmp_path, nodes):
    words = ("--nodes", str(nodes), "--gpus-per-node", "4", "--time", "2-12", "--dry-run", "--sbatch", "qos=high")
    words += ("--training.steps", "7", "--training.output=runs/my run", "--account", "physics")
    code, printed, _ = ask(monkeypatch, capsys, recipe, *words)
    (script,) = scripts_in(printed)
    expected = {"nodes": str(nodes), "ntasks-per-node": "4", "gpus-per-node": "4", "time": "2-12", "requeue": ""}
    expected |= {"job-name": "my run-train", "output": f"{tmp_path}/runs/my run/jobs/train-%j.out"}
    expected |= {"qos": "high", "account": "physics", "signal": "USR1@180"}
    assert code == 0 and options_in(script).items() >= expected.items()
    assert "partition" not in options_in(script) and "array" not in options_in(script)
    assert script.partition("run=")[2].count("--training.output") == 1
    assert "--training.steps 7\n" in script and "run='runs/my run'\n" in script and "{" not in script.split("run=")[0]
    assert not (tmp_path / "runs").exists()


def test_chain(monkeypatch, capsys, recipe):
    words = ("--nodes", "8", "--dry-run", "--then", "evaluate --evaluation.documents 9", "--then", "convert --merge")
    code, printed, _ = ask(monkeypatch, capsys, recipe, *words)
    train, evaluate, convert = scripts_in(printed)
    assert code == 0
    assert [options_in(script)["nodes"] for script in (train, evaluate, convert)] == ["8", "1", "1"]
    assert 'hmt_ds.evaluate "$run" --evaluation.documents 9\n' in evaluate and "signal" not in options_in(evaluate)
    assert 'convert "$run" "$run/converted" --merge\n' in convert and "gpus-per-node" not in options_in(convert)
    submitted = re.findall(r"^# (sbatch .*)$", printed, flags=re.MULTILINE)
    assert "dependency" not in submitted[0]
    assert "afterok:(train)" in submitted[1] and "afterok:(evaluate)" in submitted[2]
    assert all("--kill-on-invalid-dep=yes" in words for words in submitted[1:])


def test_each_part_is_written_to_a_folder_of_its_own(monkeypatch, capsys, recipe):
    parts = ("--merge", "--what memory", "--what backbone --merge")
    words = ["--dry-run", *(f"--then=convert {part}" for part in parts)]
    _, *converts = scripts_in(ask(monkeypatch, capsys, recipe, *words)[1])
    targets = [re.search('convert "[$]run" "[$]run/(.*?)"', script)[1] for script in converts]
    assert targets == ["converted", "converted-memory", "converted-backbone"]


def test_an_existing_conversion_is_reported_before_training(monkeypatch, capsys, recipe, tmp_path):
    (tmp_path / "runs/my run/converted").mkdir(parents=True)
    code, _, errors = ask(monkeypatch, capsys, recipe, "--dry-run", "--then", "convert --merge")
    assert code == 2 and errors == ["error: --then convert: runs/my run/converted exists: move it away"]


def test_special_characters_are_quoted(monkeypatch, capsys, recipe):
    """For sbatch # starts a comment, even within a word, and a line break would end a comment of the script."""
    words = ("--partition", "a#b", "--account", "it's", "--sbatch", "constraint=[a|b]#", "--model.source", "a\nexit 1")
    (script,) = scripts_in(ask(monkeypatch, capsys, recipe, "--dry-run", *words)[1])
    found = options_in(script)
    assert [found[key] for key in ("partition", "account", "constraint")] == ["a#b", "it's", "[a|b]#"]
    assert all(line.startswith("#") for line in script.partition("\nset -")[0].splitlines())


def test_array_increments_the_seed(monkeypatch, capsys, recipe):
    (script,) = scripts_in(ask(monkeypatch, capsys, recipe, "--array", "3", "--dry-run")[1])
    assert options_in(script)["array"] == "0-2"
    lines = "\n".join(line for line in script.splitlines() if line.startswith(("seed=", "run=")))
    shown = subprocess.run(
        ["bash", "-c", f"{lines}\necho $run"], env={"SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True
    )
    assert shown.stdout == "runs/my run/seed_7\n"


def shellcheck(said: str) -> None:
    """Check all scripts that a dry run has printed."""
    for script in scripts_in(said):
        text = script.split("\n# sbatch --parsable")[0] + "\n"
        run = subprocess.run([SHELLCHECK, "-"], input=text, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout


def test_scripts_pass_shellcheck(monkeypatch, capsys, recipe):
    words = ("--dry-run", "--array", "2", "--then", "evaluate", "--then", "convert --merge")
    words += ("--model.source", "it's mine")
    shellcheck(ask(monkeypatch, capsys, recipe, *words)[1])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--nodes", "0"], "--nodes: must be a whole number of at least 1, or a range such as 2-8, got '0'"),
        (["--gpus-per-node", "all"], "--gpus-per-node: must be a whole number, got 'all'"),
        (["--array", "0-3"], "--array: must be a whole number, got '0-3'"),
        (["--time", "1day"], "--time: must be like 90 (minutes), 12:00:00 or 2-12 (days-hours), got '1day'"),
        (["--then", "deploy"], "--then: must begin with one of train, evaluate, convert, got 'deploy'"),
        (
            ["--then", "evaluate it's"],
            """--then: must be quoted as in a shell, got "evaluate it's" (no closing quotation)""",
        ),
        (["--then", "train"], "--then train: no recipe given, write it as --then 'train RECIPE.yaml'"),
        (["--then", "train no.yaml"], "no.yaml: no such recipe: check the path"),
        (["--then", "evaluate --data.what 1"], "--then evaluate: data.what: unknown key"),
        (
            ["--then", "convert"],
            "--then convert: --what model of a LoRA run needs --merge; without it use --what adapter or memory",
        ),
        (
            ["--then", "convert --merge --dtpe bf16"],
            "--then convert: unrecognized arguments of convert: --dtpe bf16; remove them",
        ),
        (
            ["--then", "convert --merge --dtype fp8"],
            "--then convert: --dtype: must be 'bf16' or 'fp32', got 'fp8'",
        ),
        (
            ["--then", "convert --merge --backbone foo"],
            "--then convert: --backbone: not allowed, because the source stores its own settings: remove the option",
        ),
        (
            ["--then", "convert --what memory", "--then", "convert --what memory --dtype bf16"],
            "--then convert: two would write runs/my run/converted-memory: leave one out, or name another part with "
            "--what",
        ),
        (["--partition", "a b"], "--partition: must be a name without blanks, got 'a b'"),
        (["--account", "a\nb"], "--account: must be a name without blanks, got 'a\\nb'"),
        (["--training.output", "recipe.yaml"], "training.output: recipe.yaml is a file, give a folder"),
        (["--training.output", '"a\\nb"'], "training.output: must be one line, got 'a\\nb': give another folder"),
        (["--sbatch", "qos high"], "--sbatch: must be like exclusive or qos=high, got 'qos high'"),
        (["--training.stepps", "3"], "training.stepps: unknown key; did you mean training.steps?"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_bad_options(monkeypatch, capsys, recipe, words, line):
    code, printed, errors = ask(monkeypatch, capsys, recipe, "--dry-run", *words)
    assert code == 2 and printed == "" and errors == [f"error: {line}"]


def test_an_existing_run_is_resumed_only_on_request(monkeypatch, capsys, recipe, tmp_path):
    (tmp_path / "runs/my run/checkpoints").mkdir(parents=True)
    code, _, errors = ask(monkeypatch, capsys, recipe, "--dry-run")
    assert code == 2 and "runs/my run holds a run already" in errors[0]
    assert ask(monkeypatch, capsys, recipe, "--dry-run", "--checkpoint.resume", "auto")[0] == 0


def test_existing_runs_of_an_array_are_resumed_only_on_request(monkeypatch, capsys, recipe, tmp_path):
    for seed in (4, 6, 7, 8):
        (tmp_path / f"runs/my run/seed_{seed}/checkpoints").mkdir(parents=True)
    code, _, errors = ask(monkeypatch, capsys, recipe, "--dry-run", "--array", "3")
    assert code == 2 and [error.split(" holds")[0] for error in errors] == [
        "error: training.output: runs/my run/seed_6",
        "error: training.output: runs/my run/seed_7",
    ]
    assert ask(monkeypatch, capsys, recipe, "--dry-run", "--array", "3", "--checkpoint.resume", "auto")[0] == 0


def test_output_and_inherited_environment(recipe, tmp_path):
    """On a login node without GPUs: none of DeepSpeed's warnings, and the job does not inherit DS_ACCELERATOR=cpu."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "7;${DS_ACCELERATOR-}" | tee asked\n')
    sbatch.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "hmt_ds.cli", "launch", "slurm", recipe]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "job 7   runs/my run/jobs/train.sbatch\nnext        hmt-ds status runs/my run\n"
    assert (tmp_path / "asked").read_text() == "7;\n"


def test_without_sbatch(monkeypatch, capsys, recipe, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = ask(monkeypatch, capsys, recipe)
    assert code == 2 and errors == [
        "error: sbatch is not on the PATH: launch from a Slurm login node, or print the scripts with --dry-run"
    ]
    assert not (tmp_path / "runs").exists()


def test_starts_are_counted_by_job_and_checkpoint(capsys, recipe, tmp_path):
    latest = tmp_path / "runs/my run/checkpoints/latest"
    assert [start("7", 2, recipe, []) for _ in range(3)] == [0, 0, 2]
    assert "starts of job 7 that found no checkpoint and got no further: 2." in capsys.readouterr().err
    latest.parent.mkdir()
    latest.write_text("step_000010")
    assert [start("7", 2, recipe, []) for _ in range(3)] == [0, 0, 2]
    assert "starts of job 7 that found step_000010 and got no further: 2." in capsys.readouterr().err
    latest.write_text("step_000020")
    assert start("7", 2, recipe, []) == 0
    latest.write_text("step_000010")
    assert start("70", 2, recipe, []) == 0  # submitted again, by a person


if __name__ == "__main__":
    for size in ("1", "8", "64"):
        more = ["--nodes", size, "--then", "evaluate", "--then", "convert --merge", "--dry-run"]
        sys.argv = ["hmt-ds", "launch", "slurm", "launch/recipes/smollm2-135m.yaml", *more]
        with pytest.raises(SystemExit):
            cli.main()
