"""Wrong recipes: each problem is one line, no rank starts, and no file changes.

    python tests/unit/test_bad_input.py

prints all error messages.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from bad_folder import contents, errors_in, make_folder
from bad_recipes import RECIPE_CASES, Case
from bad_sources import DATA_CASES

from hmt_ds import cli

CASES = [*RECIPE_CASES, *DATA_CASES]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The working folder, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def ask(folder: Path, case: Case) -> tuple[Any, str]:
    """Run `hmt-ds train` in this process; return exit code and stderr."""
    said = io.StringIO()
    with (
        inside(folder),
        mock.patch.object(sys, "argv", ["hmt-ds", "train", case.recipe, *case.words]),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    return end.value.code, said.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make a folder that all cases share: none of them may change it."""
    folder = tmp_path_factory.mktemp("bad_input")
    make_folder(folder)
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_problem_is_one_line(folder, case):
    before = contents(folder)
    code, said = ask(folder, case)
    errors = errors_in(said)
    assert code == 2 and errors, said
    text, at = "\n".join(errors), 0
    for part in case.lines:
        at = text.find(part, at)
        assert at >= 0, f"{part!r} is not in\n{text}"
    assert all(len(line) < 400 for line in errors) and "Traceback" not in said
    assert contents(folder) == before


def test_one_line_per_problem(folder):
    several = [case for case in CASES if case.name.startswith("several")]
    for case in several:
        assert len(errors_in(ask(folder, case)[1])) == len(case.lines)
    assert len(several) == 3


def test_one_line_per_setting_of_the_recall(folder):
    recalls = [case for case in CASES if "recall" in case.name]
    assert len(recalls) == 6
    for case in recalls:
        assert len(errors_in(ask(folder, case)[1])) == len(case.lines)


def test_command_in_a_process(folder):
    """In a process of its own it prints nothing but the problems."""
    case = CASES[0]
    run = subprocess.run(
        [sys.executable, "-m", "hmt_ds.cli", "train", case.recipe, *case.words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and run.stdout == "" and run.stderr == f"error: {case.lines[0]}\n"


def test_document_shorter_than_a_segment_is_fine(folder, tmp_path):
    from hmt_ds.config.load import load_recipe
    from hmt_ds.preflight.prepare import prepare

    with inside(folder):
        prepared = prepare(load_recipe("recipe.yaml", ["--data.cache_dir", str(tmp_path)]), "recipe.yaml")
    assert prepared.train["length"][0] < 16 and len(prepared.train) == 1


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place))
        for one in CASES:
            print(f"\n{one.name}: hmt-ds train {' '.join([one.recipe, *one.words])}")
            print("\n".join(errors_in(ask(Path(place), one)[1])))
