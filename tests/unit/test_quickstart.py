"""The output folder that launch/quickstart.sh chooses. The script runs with a Python that only prints its arguments."""

import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.mark.parametrize(
    ("words", "runs", "output"),
    [
        ([], [], "runs/quickstart"),
        ([], ["quickstart", "quickstart-2"], "runs/quickstart-3"),
        (["--checkpoint.resume", "auto"], ["quickstart", "quickstart-2", "quickstart-10"], "runs/quickstart-10"),
        (["--checkpoint.resume=auto"], ["quickstart"], "runs/quickstart"),
        (["--checkpoint.resume", "auto"], [], "runs/quickstart"),
        (["--checkpoint.resume", "never"], ["quickstart"], "runs/quickstart-2"),
        (["--training.output", "mine"], ["quickstart"], "mine"),
    ],
)
def test_output_folder(tmp_path, words, runs, output):
    """A new folder unless one is named; the newest run if it is to be resumed."""
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "quickstart.sh", tmp_path / "launch")
    (tmp_path / "launch" / "setup_env.sh").write_text("say() { :; }\nsetup_env() { :; }\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nif [ "$1" = -c ]; then echo 2; else echo "$@"; fi\n')
    python.chmod(0o755)
    for name in runs:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.jsonl").touch()
    command = ["bash", str(tmp_path / "launch" / "quickstart.sh"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    asked = ended.stdout.split("\n")[-2]
    assert "train launch/recipes/quickstart.yaml --ranks 2" in asked
    assert asked.split("--training.output ")[1].split()[0] == output and all(word in asked for word in words)
