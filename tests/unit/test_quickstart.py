"""What launch/quickstart.sh starts, and where. The script runs with a Python that only prints its arguments."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hmt_ds.data import load_tokenizer

SAMPLES = Path(__file__).resolve().parents[2] / "hmt_ds/data/samples"
LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def quickstart(tmp_path):
    """Run the script beside earlier runs; return the commands that it starts."""
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "quickstart.sh", tmp_path / "launch")
    (tmp_path / "launch" / "setup_env.sh").write_text("say() { :; }\nsetup_env() { :; }\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nif [ "$1" = -c ]; then echo 2; else echo "$@"; fi\n')
    python.chmod(0o755)

    def run(*words: str, runs: list[str]) -> list[str]:
        for name in runs:
            (tmp_path / "runs" / name).mkdir(parents=True)
            (tmp_path / "runs" / name / "metrics.jsonl").touch()
        command = ["bash", str(tmp_path / "launch" / "quickstart.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    return run


@pytest.mark.parametrize(
    ("words", "runs", "output"),
    [
        ([], [], "runs/quickstart"),
        ([], ["quickstart", "quickstart-2"], "runs/quickstart-3"),
        ([], ["quickstart-baseline"], "runs/quickstart-2"),
        (
            ["--checkpoint.resume", "auto"],
            ["quickstart", "quickstart-2", "quickstart-10", "quickstart-10-baseline"],
            "runs/quickstart-10",
        ),
        (["--checkpoint.resume=auto"], ["quickstart"], "runs/quickstart"),
        (["--checkpoint.resume", "auto"], [], "runs/quickstart"),
        (["--checkpoint.resume", "never"], ["quickstart"], "runs/quickstart-2"),
        (["--training.output", "mine"], ["quickstart"], "mine"),
        (["--training.output=mine", "--training.steps", "9"], [], "mine"),
    ],
)
def test_output_folder(quickstart, words, runs, output):
    """A new folder unless one is named; the newest run if it is to be resumed. The baseline is beside it."""
    memory, baseline, compared = quickstart(*words, runs=runs)
    given = [word for word in words if "output" not in word and word != "mine"]
    assert memory == " ".join(
        ["-m hmt_ds.cli train launch/recipes/quickstart.yaml --ranks 2", *given, "--training.output", output]
    )
    assert baseline == f"{memory}-baseline --memory.mode backbone --memory.recall_loss 0"
    assert compared == f"-m hmt_ds.cli compare {output}-baseline {output} --picture {output}/compare.png"


def test_a_novel(quickstart):
    tokenizer, memory, baseline, _ = quickstart("--novel", runs=["novel"])
    assert "tokenizer hmt_ds/data/samples/prideprejudice.txt" in tokenizer
    assert "train launch/recipes/novel.yaml --ranks 2 --training.output runs/novel-2" in memory
    assert "--novel" not in memory and "runs/novel-2-baseline" in baseline


def test_the_document_of_the_readme_ends_where_a_question_fits():
    """Six tokens before the end of a segment: what asks for a memory are the last six of a segment."""
    tokenizer = load_tokenizer(str(SAMPLES / "words"))
    document = tokenizer((SAMPLES / "facts.txt").read_text(encoding="utf-8")).input_ids
    question = tokenizer("Where is the flat comb ?", add_special_tokens=False).input_ids
    assert (len(document) + len(question)) % 18 == 0 and tokenizer.unk_token_id not in document
    assert "The flat comb is in Damascus ." in (SAMPLES / "facts.txt").read_text(encoding="utf-8")
