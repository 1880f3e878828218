"""Run `hmt-ds` in this process, with forked ranks in place of DeepSpeed's launcher (`tiny_recipe.start` uses it)."""

import io
import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest
from ranks import PROJECT
from tiny_recipe import run_module

from hmt_ds import cli


def run_command(*words: str) -> tuple[int, str]:
    """Run `hmt-ds WORDS`; return its exit code and output."""
    printed = io.StringIO()

    def run_ranks(module: str, arguments: list[str], ranks: int) -> int:
        code, said = run_module(module, *arguments, ranks=ranks)
        printed.write(said)
        return code

    with (
        chdir(PROJECT),
        patch.dict(os.environ),
        patch.object(sys, "argv", ["hmt-ds", *words]),
        patch("hmt_ds.launch.start.run_ranks", run_ranks),
        redirect_stdout(printed),
        redirect_stderr(printed),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    return int(end.value.code or 0), printed.getvalue()
