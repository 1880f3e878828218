"""Lint and types, as part of the tests: there is no other place where they are asked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


@pytest.mark.parametrize("command", [["ruff", "check"], ["mypy"]], ids=lambda command: command[0])
def test_clean(command):
    """Both read their dotfiles in the root of the repository."""
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("readme", sorted(ROOT.glob("hmt_ds/**/README.md")), ids=lambda file: file.parent.name)
def test_a_map_names_all_files(readme):
    """Of its folder."""
    files = {file.name for file in readme.parent.glob("*.py")} - {"__init__.py"}
    assert sorted(name for name in files if name not in readme.read_text()) == []


def test_shell_is_clean():
    scripts = [*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch"), ROOT / "tests/cluster/minicluster"]
    run = subprocess.run([SHELLCHECK, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
