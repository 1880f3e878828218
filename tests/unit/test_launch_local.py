"""launch/local.sh finds the recipe that its caller names: in the project, or beside the caller."""

import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("named", "runs_in_project"),
    [("mine.yaml", False), ("launch/recipes/quickstart.yaml", True), ("absent.yaml", True)],
)
def test_paths_of_recipes(tmp_path, named, runs_in_project):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "mine.yaml").touch()
    environment = os.environ | {"VENV": str(tmp_path / "venv"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    command = ["bash", str(PROJECT / "launch" / "local.sh"), named, "--ranks", "2"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    folder = PROJECT if runs_in_project else tmp_path
    assert run.stdout == f"{folder} -m hmt_ds.cli train {named} --ranks 2\n"
