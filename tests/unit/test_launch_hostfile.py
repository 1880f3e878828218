"""Arguments of launch/hostfile.sh reach the ranks unchanged, through pdsh and the shells of the machines."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STUB = """
mkdir -p bin
printf '#!/bin/sh\\n' >bin/python
printf '#!/usr/bin/env bash\\nprintf "%%s\\\\0" "$@"' >bin/deepspeed
chmod +x bin/*
PATH=$PWD/bin:$PATH HMT_DS_EXIT_CODE_FILE=launch/hostfile.sh MASTER_ADDR=node0 MASTER_PORT=1 work=.
make_work() { :; }
write_deepspeed_env() { :; }
run_launcher() { "$@"; }
"""


@pytest.mark.parametrize(
    "word",
    [
        "--data.train.separator=^(Chapter|Letter)",
        "{betas:[0.9,0.95]}",
        "a;b",
        "$(echo run)",
        "`echo run` of $HOME",
        'it\'s "quoted" \\ twice',
        'it\'s"quoted"\\once',
        "*",
        "~",
        "100%",
        "%n of %h%%",
        "",
        " ",
        "a\nb",
        "a\n b",
    ],
)
def test_arguments_are_unchanged(tmp_path, word):
    (tmp_path / "launch").mkdir()
    shutil.copy(LAUNCH / "hostfile.sh", tmp_path / "launch")
    (tmp_path / "launch" / "node_env.sh").write_text(STUB)
    script = ["bash", str(tmp_path / "launch" / "hostfile.sh"), "recipe.yaml", word]
    given = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    words = given[given.index("hmt_ds.train") + 1 :]
    sent = " ".join(PDSHRunner.parse_user_args(SimpleNamespace(args=SimpleNamespace(user_args=words))))
    sent = re.sub("%([%hnu])", lambda found: {"%": "%", "h": "node0", "n": "0", "u": "me"}[found[1]], sent)  # pdsh
    shell = subprocess.run(["bash", "-c", f"printf '%s\\0' {sent}"], capture_output=True, text=True, check=True)
    assert shell.stdout.split("\0")[:-1] == ["recipe.yaml", word]
