"""Two starts of one run at once: one trains, the other says who does, and nothing is lost."""

import signal
from pathlib import Path

import pytest
from tiny_recipe import STEPS, finish, kill_at, make_materials, signal_at, train, train_alone, write_recipe

from hmt_ds.checkpoint.run_lock import LOCKS
from hmt_ds.reporting.metrics import read_metrics

RESUME = ("--checkpoint.resume", "auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text and tokenizer of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    make_materials(folder)
    return folder


@pytest.mark.parametrize("more", [RESUME, ()], ids=["resume", "never"])
def test_one_of_two_starts_trains(folder, more):
    recipe, output = write_recipe(folder, 1), folder / f"twice{len(more)}"
    with train_alone(recipe, output, *more, ranks=1) as one, train_alone(recipe, output, *more, ranks=1) as other:
        ended = [finish(one), finish(other)]
    (_, trained), (_, refused) = sorted(ended)
    assert [code for code, _ in sorted(ended)] == [0, 2], ended
    errors = [line for line in refused.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in refused, refused
    assert f"another start trains into {output} (process " in errors[0] or "holds a run already" in errors[0], refused
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == list(range(1, STEPS + 1)), trained
    assert not list(output.glob(LOCKS))


def test_a_killed_start_does_not_hold_up_the_next_one(folder):
    recipe, output = write_recipe(folder, 1), folder / "killed"
    kill_at(recipe, output, "--checkpoint.every", "2", step=5)
    assert len(list(output.glob(LOCKS))) == 1
    code, printed = train(recipe, output, *RESUME)
    assert code == 0 and "resumed from" in printed and "sign of life" not in printed, printed
    assert [row["step"] for row in read_metrics(output / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert not list(output.glob(LOCKS))


def test_a_start_whose_lock_was_taken_away_ends(folder):
    """A start that was stopped for so long that another start removed its lock ends when it goes on."""
    recipe, output = write_recipe(folder, 1), folder / "taken"
    with train_alone(recipe, output, "--training.steps", "100000") as run:
        signal_at(run, lambda _: [], signal.SIGTERM, output, step=1)
        next(output.glob(LOCKS)).unlink()
        code, printed = finish(run, timeout=60)
    assert code and printed.count("error: ") >= 1 and "another start, to which this one seemed dead" in printed, printed
