"""Compare with every stored case of the reference implementation; check that the comparison can fail."""

import json
import math
import sys
from pathlib import Path

import pytest
import run_case
from safetensors.torch import save_file

CASES = sorted((Path(__file__).parent / "cases").glob("*.safetensors"))
ONE = next(file for file in CASES if file.stem == "hmt_basic")


def test_all_cases_are_here():
    """Each variant of the reference has a stored case, so that a lost file is noticed."""
    modes = {run_case.read_case(file)[0]["mode"] for file in CASES}
    assert len(CASES) == 9 and modes == {"hmt", "rmt", "baseline"}


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_reference(file):
    errors = run_case.run_case(file)
    assert errors.keys() >= {"loss", "logits", "gradients"}
    assert all(error <= run_case.TOLERANCE for error in errors.values()), errors


def exit_code(monkeypatch: pytest.MonkeyPatch, *files: Path) -> int:
    """Exit code of the comparison program."""
    monkeypatch.setattr(sys, "argv", ["run_case.py", *map(str, files)])
    with pytest.raises(SystemExit) as stopped:
        run_case.main()
    return int(stopped.value.code)


def altered_copy(folder: Path, name: str, factor: float) -> Path:
    """A copy of a case in which the largest number of one tensor is multiplied by ``factor``."""
    case, tensors = run_case.read_case(ONE)
    tensor = tensors[name].view(-1)
    tensor[tensor.abs().argmax()] *= factor
    save_file(tensors, folder / ONE.name, metadata={"case": json.dumps(case)})
    return folder / ONE.name


def test_exits_0_where_all_agree(monkeypatch):
    assert exit_code(monkeypatch, ONE) == 0


@pytest.mark.parametrize("name", ["loss", "logits", "trace.memory", "trace.memory_prompt", "grad.mem", "generated"])
def test_exits_1_where_a_tensor_differs(name, monkeypatch, tmp_path):
    assert exit_code(monkeypatch, ONE, altered_copy(tmp_path, name, 2)) == 1


@pytest.mark.parametrize("name", ["loss", "logits", "grad.mem"])
def test_exits_1_where_a_tensor_is_nan(name, monkeypatch, tmp_path):
    """No comparison with nan is true, so the test against the limit must be written so that nan fails it."""
    assert exit_code(monkeypatch, altered_copy(tmp_path, name, math.nan)) == 1
