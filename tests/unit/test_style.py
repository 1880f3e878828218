"""Lint, format, types and shell scripts: the hooks of .pre-commit-config.yaml, run as tests."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
HOOKS = [hook for repo in CONFIG["repos"] for hook in repo["hooks"]]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_hook_passes(hook):
    """The tools are found beside this Python, whether or not the environment is activated."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    words = shlex.split(hook["entry"])
    run = subprocess.run(words, cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_hooks_check_the_whole_project():
    """A hook that is given file names would not run here as pre-commit runs it."""
    assert {hook["id"] for hook in HOOKS} == {"ruff-check", "ruff-format", "mypy", "shellcheck"}
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in HOOKS)


def test_any_is_rare():
    """On at most 8 of 1,000 lines: for JSON and for arguments that are passed through, not as a habit."""
    lines = [line for file in (ROOT / "hmt_ds").rglob("*.py") for line in file.read_text().splitlines()]
    assert sum(bool(re.search(r"\bAny\b", line)) for line in lines) <= 0.008 * len(lines)
