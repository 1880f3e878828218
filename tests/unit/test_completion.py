"""Tab completion in a real bash: commands, options, keys of a recipe, files."""

import subprocess
import sys

import pytest

COMPLETE = """
source <("$1" -m hmt_ds --print-completion bash)
function=$(complete -p hmt-ds | sed 's/.*-F \\([^ ]*\\).*/\\1/')
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
$function hmt-ds "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ch"], "check chat"),
        (["train", "novel.yaml", "--training.batch"], "--training.batch_size"),
        (["train", "nov"], "novel.yaml"),
        (["evaluate", "runs", "--ta"], "--tasks"),
        (["keys", "--training.batch"], ""),  # takes no keys
    ],
)
def test_words_are_completed(words, completed, tmp_path):
    (tmp_path / "novel.yaml").touch()
    command = ["bash", "-c", COMPLETE, "bash", sys.executable, "hmt-ds", *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == completed
