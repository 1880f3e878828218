"""`hmt-ds compare` of runs that were asked questions: the table, the sentence, the picture, and what is refused."""

import json
from pathlib import Path

import pytest

from hmt_ds.config.config_error import ConfigError
from hmt_ds.evaluation.compare import compare
from hmt_ds.evaluation.compare_options import CompareOptions


def write_run(folder: Path, right: float, sha256: str = "a" * 64, step: int = 9, kind: str = "retrieval_") -> Path:
    """Write a run whose answers are right that often at 8 segments, and half as often at 80."""
    rows = [{"segments": n, "right": [share, None, None]} for n, share in ((8, right), (80, right / 2))]
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    content = {"step": step, "data": {"sha256": sha256}, "chance": 1 / 24, "rows": rows}
    (folder / "evaluation" / f"{kind}step_{step:06d}.json").write_text(json.dumps(content))
    return folder


def test_table_sentence_and_picture(tmp_path, capsys):
    """The newest answers of each run count."""
    one, other = write_run(tmp_path / "plain", 0.05), write_run(tmp_path / "memory", 0.5, step=3)
    write_run(other, 0.9)
    assert compare([one, other], CompareOptions(picture=tmp_path / "both.png")) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["8", "5.0%", "90.0%"] in rows and ["80", "2.5%", "45.0%"] in rows
    assert "answered right in documents of 80 segments: plain 2.5%, memory 45.0%; chance 4.2%" in printed
    assert (tmp_path / "both.png").stat().st_size > 1000


def refused(runs: list[Path], **options) -> list[str]:
    with pytest.raises(ConfigError) as error:
        compare(runs, CompareOptions(**options))
    return error.value.problems


def test_refusals(tmp_path):
    one, other = write_run(tmp_path / "one", 0.5), write_run(tmp_path / "other", 0.5, sha256="b" * 64)
    losses = write_run(tmp_path / "losses", 0.5, kind="")
    (line,) = refused([one, other])
    assert line.startswith(f"{other}: was asked other questions than {one}")
    (line,) = refused([one, losses])
    assert line.startswith(f"{losses}: has held-out losses, but other runs have answers")
    assert refused([one, tmp_path / "absent"]) == [
        f"{tmp_path / 'absent'}: no such run: name the folder of a run (training.output)"
    ]
    short = write_run(tmp_path / "short", 0.5)
    file = short / "evaluation" / "retrieval_step_000009.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"rows": content["rows"][:1]}))
    (line,) = refused([one, short])
    assert line.startswith(f"{short}: was asked in documents of [8] segments, {one} in documents of [8, 80]")
    assert refused([one, one, other], gap=True)[0].startswith("--gap: ")
    (one / "evaluation" / "retrieval_step_000009.json").write_text("{")
    (line,) = refused([one, other])
    assert line.startswith(f"{one / 'evaluation' / 'retrieval_step_000009.json'}: damaged")
