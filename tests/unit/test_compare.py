"""`hmt-ds compare`: runs whose losses are known, of different segment lengths too, and runs that cannot be compared."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmt_ds import cli
from hmt_ds.config.config_error import ConfigError
from hmt_ds.evaluation.compare import compared, read_all, shares_of
from hmt_ds.evaluation.files import Evaluation, HeldOutData, read_evaluation, write_evaluation
from hmt_ds.evaluation.losses import DocumentLosses

DATA = HeldOutData("texts/held_out.txt", "ab" * 32, 30, 30 * 64, "400 tokens, vocabulary abc")
DOCUMENTS, TOKENS = 30, 64


def by_token(gain: float, seed: int = 1, noise: float = 0.05) -> np.ndarray:
    """Losses ``[documents, tokens]``: documents that differ by a nat, less a gain for tokens from 32 on."""
    of_documents = np.random.default_rng(0).normal(3, 1, (DOCUMENTS, 1))
    own = np.random.default_rng(seed).normal(0, noise, (DOCUMENTS, TOKENS))
    return of_documents + own - gain * (np.arange(TOKENS) >= 32)


def evaluation(losses: np.ndarray, length: int = 8, read: tuple[int, ...] = (1, 4), **changes: str) -> Evaluation:
    """An evaluation of segments of this length, in parts of a token up to 8 and of more above."""
    parts = min(8, length)
    shape = (DOCUMENTS, TOKENS // length, parts, length // parts)
    tokens = {"own": np.full(shape[:3], float(shape[3]))}
    found = DocumentLosses(length, {"own": losses.reshape(shape).sum(axis=3)}, tokens)
    return Evaluation(7, replace(DATA, **changes), list(read), found)


def write_run(folder: Path, one: Evaluation) -> Path:
    write_evaluation(one, folder / "evaluation" / f"step_{one.step:06d}.json")
    return folder


def run(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["hmt-ds", "compare", *map(str, words)])
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_differences_are_paired():
    """Documents differ by a nat and the runs by a tenth: the interval of the difference does not see the documents."""
    tables = compared([evaluation(by_token(0.0)), evaluation(by_token(0.1, seed=2))], ["one", "other"])
    assert [(rows[0].first, rows[0].below, rows[0].tokens) for rows in tables] == [
        (8, 32, 720),
        (32, 64, 960),
        (8, 64, 1680),
    ]
    before, behind, whole = (rows[1].difference for rows in tables)
    assert before.low < 0 < before.high and abs(before.mean) < 0.01
    assert behind.mean == pytest.approx(-0.1, abs=0.01) and behind.high < -0.09
    expected = (by_token(0.1, seed=2) - by_token(0.0))[:, 8:].mean()
    assert whole.mean == pytest.approx(expected)
    assert tables[1][0].nats.high - tables[1][0].nats.low > 0.5 > 0.02 > behind.high - behind.low
    assert tables[1][0].difference is None


@pytest.mark.parametrize("length", [2, 16, 64])
def test_segments_of_another_length_are_the_same_tokens(length):
    losses = by_token(0.1, seed=2)
    same = compared([evaluation(by_token(0.0)), evaluation(losses)], ["one", "other"])
    other = compared([evaluation(by_token(0.0)), evaluation(losses, length, (1,))], ["one", "other"])
    for rows, others in zip(same, other, strict=True):
        assert rows[1].difference == pytest.approx(others[1].difference) and rows[1].tokens == others[1].tokens


def test_shares_of_a_gap():
    """0, a half and the whole of the last one's gain; by the ratio of sums, not the mean of ratios."""
    evaluations = [evaluation(by_token(gain, seed)) for seed, gain in enumerate((0.0, 0.1, 0.2, -0.05), 1)]
    rows = compared([*evaluations[:2], evaluations[3], evaluations[2]], ["a", "b", "d", "c"])[1]
    shares = [row.share for row in rows]
    assert shares[0] == pytest.approx((0, 0, 0)) and shares[3] == pytest.approx((1, 1, 1))
    assert shares[1].mean == pytest.approx(0.5, abs=0.03) and shares[1].low < shares[1].mean < shares[1].high
    assert shares[2].high < 0


def test_no_share_of_a_gap_that_may_be_none():
    gains = np.tile([[1.0, 1.0, 1.0], [1.0, 1.0, -0.9]], (15, 1))
    assert shares_of(gains) == [None] * 3 and shares_of(gains[:1]) == [None] * 3


def test_files_read_back(tmp_path):
    one = evaluation(by_token(0.1))
    file = write_run(tmp_path, one) / "evaluation/step_000007.json"
    found = read_evaluation(file)
    assert (found.step, found.data, found.segments_read) == (one.step, one.data, one.segments_read)
    np.testing.assert_array_equal(found.losses.losses["own"], one.losses.losses["own"])
    np.testing.assert_array_equal(found.losses.tokens["own"], one.losses.tokens["own"])


def test_the_command(tmp_path, capsys, monkeypatch):
    """The newest evaluation of the run's own data; a table, a sentence for each run, and a picture."""
    monkeypatch.chdir(tmp_path)
    old = write_run(tmp_path / "rmt", evaluation(by_token(-9.0)))
    write_run(old, replace(evaluation(by_token(0.1, 2)), step=20))
    other = replace(evaluation(by_token(5.0)), step=30)
    write_evaluation(other, old / "evaluation/step_000030_12345678.json")
    folders = [write_run(tmp_path / "backbone", evaluation(by_token(0.0))), old]
    folders.append(write_run(tmp_path / "long", evaluation(by_token(0.2, 3), 64, (1,))))
    assert run(*folders, "--gap", "--picture", "gap.png") == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert any("share of the gap" in line for line in lines)
    (found,) = [line for line in lines if line.startswith("rmt 960 ")]
    assert found.endswith("-0.102 [-0.105, -0.098] 52% [50%, 53%]")
    assert "rmt is 0.059 nats better than backbone [0.056, 0.062], 53% [51%, 55%] of the gap" in lines
    assert lines[-2:] == ["picture gap.png", "next hmt-ds report RUN RUN"]
    with Image.open("gap.png") as picture:
        assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10
    # a run against itself, by an evaluation's file
    assert run(folders[0], folders[0] / "evaluation/step_000007.json") == 0
    printed = capsys.readouterr().out
    assert "cannot be told from" in printed and "share" not in printed and Path("comparison.png").exists()


def problems_of(*runs: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read_all(runs)
    return error.value.problems


def test_all_runs_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "old/evaluation").mkdir(parents=True)
    (tmp_path / "old/evaluation/step_000007.json").write_text(json.dumps({"step": 7, "rows": []}))
    torn = write_run(tmp_path / "torn", evaluation(by_token(0.0)))
    (torn / "evaluation/step_000007.npz").write_bytes(b"PK" + b"0" * 30)
    names = [tmp_path / name for name in ("absent", "empty", "old", "torn")]
    absent, empty, old, torn_line = problems_of(*names)
    assert absent == f"{names[0]}: no such run: name the folder of a run (training.output)"
    assert empty == f"{names[1]}: has no evaluation; make one with hmt-ds evaluate {names[1]}"
    assert old.startswith(f"{names[2]}/evaluation/step_000007.json: no evaluation with the losses of each document")
    assert "torn" in torn_line and "evaluate again" in torn_line


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            evaluation(by_token(0.0), tokenizer="500 tokens, vocabulary def"),
            "tokenizer 500 tokens, vocabulary def, but {first} 400 tokens, vocabulary abc; leave one out",
        ),
        (
            evaluation(by_token(0.0), sha256="cd" * 32, source="other.txt"),
            "has read 30 documents, 1,920 tokens, at most 64 of each, SHA-256 cdcdcdcdcdcd (other.txt), but {first} "
            "30 documents, 1,920 tokens, at most 64 of each, SHA-256 abababababab (held_out.txt); evaluate both with",
        ),
    ],
)
def test_other_tokens(tmp_path, other, line):
    first = write_run(tmp_path / "one", evaluation(by_token(0.0)))
    second = write_run(tmp_path / "other", other)
    (found,) = problems_of(first, second)
    assert found.startswith(f"{second}: {line.format(first=first)}")


def test_rows_that_begin_within_a_part(tmp_path):
    """Segments of 64 have parts of 8 tokens, so losses from token 4 on cannot be computed."""
    first = write_run(tmp_path / "one", evaluation(by_token(0.0), 4, (1, 8)))
    second = write_run(tmp_path / "other", evaluation(by_token(0.0), 64, (1,)))
    (found,) = problems_of(first, second)
    line = f"token 4, where a row of {first} begins, is within an eighth of a segment of 64 tokens; evaluate {first}"
    assert found.startswith(f"{second}: {line}")
    read_all([second, first])  # the other way round they can be compared


def test_other_scored_tokens(tmp_path):
    first, second = evaluation(by_token(0.0)), evaluation(by_token(0.0))
    second.losses.tokens["own"][3, 5, 2] = 0
    runs = [write_run(tmp_path / name, one) for name, one in (("one", first), ("other", second))]
    assert problems_of(*runs) == [
        f"{runs[1]}: has scored other tokens than {runs[0]}; evaluate both with the same data.validation"
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["one"], "at least two runs are compared, got 1: name another one"),
        (["one", "one", "--gap"], "--gap: compares at least three runs, got 2: name another one"),
        (["one", "one", "--picture", "x.jpg"], "--picture: must end in .png, .svg, .pdf, got 'x.jpg'"),
        (["one", "absent"], "absent: no such run: name the folder of a run (training.output)"),
        (["deep", "deep"], "deep: no document has 80 tokens, so no token was scored: evaluate longer documents"),
    ],
)
def test_wrong_commands(tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.chdir(tmp_path)
    write_run(Path("one"), evaluation(by_token(0.0)))
    write_run(Path("deep"), evaluation(by_token(0.0), read=(10,)))
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {line}\n" and not list(tmp_path.glob("*.png"))


def test_one_document_gives_no_interval():
    one = evaluation(by_token(0.0))
    losses, tokens = one.losses.losses["own"][:1], {"own": one.losses.tokens["own"][:1]}
    alone = [replace(one, losses=DocumentLosses(8, {"own": factor * losses}, tokens)) for factor in (1, 0.9)]
    row = compared(alone, ["one", "other"])[-1][1]
    assert row.difference.mean < 0 and np.isnan(row.difference.low) and row.share is None


def test_it_starts_without_torch(tmp_path):
    """Numbers from files need none of it: the command takes a second."""
    for name in ("one", "other"):
        write_run(tmp_path / name, evaluation(by_token(0.0)))
    code = "import sys; sys.argv = ['hmt-ds', 'compare', 'one', 'other']\nfrom hmt_ds import cli\n"
    code += "try: cli.main()\nexcept SystemExit as end: assert end.code == 0\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
