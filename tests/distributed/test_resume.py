"""`hmt-ds train` killed, stopped and started wrongly. A resumed run equals the undisturbed one bit for bit."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import (
    STEPS,
    command_of,
    finish,
    kill_at,
    launch,
    launchers_of,
    make_materials,
    ranks_of,
    signal_at,
    start,
    train,
    write_recipe,
)

from hmt_ds.distributed.stopping import STOPPED
from hmt_ds.reporting.metrics import read_metrics

RESUME = ("--checkpoint.resume", "auto")
# The checkpoints of steps 4 and 8, and one near step 6, are in different stages, and the last is within one.
DEPTHS = ("--training.bptt_depth", "{0: 2, 4: 3, 7: 5}", "--training.random_depth", "true")
BREAKS = str(Path(__file__).with_name("breaks"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text and tokenizer of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    make_materials(folder)
    return folder


def losses(output: Path) -> list[tuple[int, Any]]:
    """Step, loss and gradient norm of every row of the metrics."""
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(output / "metrics.jsonl")]


def contents(output: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()}


def interrupt(recipe: Path, output: Path, targets: Any, number: int, *more: str) -> tuple[int, str]:
    """Train until step 6 is logged, then send some processes a signal."""
    with start(recipe, output, *more) as process:
        signal_at(process, targets, number, output, step=6)
        return finish(process)


def test_killed_then_stopped_then_finished(folder):
    """One run is killed, stopped and finished; dropout, memories, schedules and data continue where they were.

    The depth of its windows changes from step to step, and the ranks would wait for each other forever if they drew
    different ones.
    """
    recipe, whole, broken = write_recipe(folder), folder / "whole", folder / "broken"
    assert train(recipe, whole, *DEPTHS)[0] == 0
    assert [step for step, *_ in losses(whole)] == list(range(1, STEPS + 1))

    kill_at(recipe, broken, *DEPTHS, step=6)
    assert (broken / "checkpoints" / "latest").read_text().strip() in ("step_000004", "step_000008")
    assert 6 <= len(losses(broken)) < STEPS

    code, printed = interrupt(recipe, broken, command_of, signal.SIGTERM, *DEPTHS, *RESUME)
    assert code == STOPPED and "resumed from" in printed and "stopped after step" in printed, printed
    stopped = len(losses(broken))
    assert 6 <= stopped < STEPS
    assert (broken / "checkpoints" / "latest").read_text().strip() == f"step_{stopped:06d}"

    code, printed = launch(recipe, broken, *DEPTHS, *RESUME)
    assert code == 0 and f"step {stopped}" in printed, printed
    assert losses(broken) == losses(whole)
    with (broken / "metrics.csv").open() as table:
        rows = [(int(row["step"]), float(row["loss"]), float(row["gradient_norm"])) for row in csv.DictReader(table)]
    assert rows == losses(whole)

    before = contents(broken)
    code, printed = train(recipe, broken, *DEPTHS, *RESUME, ranks=1)
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(errors) == 1 and "batch_size x ranks is 4 in" in errors[0] and "2 here" in errors[0], (
        printed
    )
    assert "Traceback" not in printed, printed
    assert contents(broken) == before


def test_a_mix_of_sources_is_killed_and_goes_on(folder):
    """Each source goes on where it was, and other weights are refused."""
    text = str(folder / "text.txt")
    sources = [{"source": text, "separator": "^Chapter", "weight": 3}, {"source": text, "separator": r"^\s*$"}]
    more = (f"--data.train={json.dumps(sources)}", "--data.mix_by", "documents")
    recipe, whole, broken = write_recipe(folder, 1), folder / "whole_mix", folder / "broken_mix"
    assert train(recipe, whole, *more)[0] == 0
    kill_at(recipe, broken, *more, step=6)
    code, printed = train(recipe, broken, *more, "--data.train.0.weight", "4", *RESUME)
    assert code == 2 and "data.train, shares" in printed and "with weight 4" in printed, printed
    code, printed = train(recipe, broken, *more, *RESUME)
    assert code == 0 and "resumed from" in printed, printed
    assert losses(broken) == losses(whole)


def test_one_rank_fails_at_its_start(folder):
    """The launcher ends the other rank, which waits for the failed one."""
    output = folder / "failed"
    options = {"PYTHONPATH": BREAKS, "HMT_DS_BREAK": "rank_1"}
    with start(write_recipe(folder), output, **options) as process:
        code, printed = finish(process)
        assert not ranks_of(output)
    assert code != 0 and "rank 1 fails on purpose" in printed, printed
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_killed_at_other_stages(folder, stage):
    recipe, whole, broken = write_recipe(folder, stage), folder / f"whole{stage}", folder / f"broken{stage}"
    assert train(recipe, whole)[0] == 0
    kill_at(recipe, broken, step=6)
    code, printed = train(recipe, broken, *RESUME)
    assert code == 0 and "resumed from" in printed, printed
    assert losses(broken) == losses(whole)


@pytest.mark.slow
def test_stopped_through_the_launcher(folder):
    """A scheduler signals the launcher, which forwards SIGTERM to the ranks; they save."""
    recipe, output = write_recipe(folder), folder / "launcher"
    _, printed = interrupt(recipe, output, launchers_of, signal.SIGTERM)
    assert "stopped after step" in printed, printed
    assert (output / "checkpoints" / "latest").read_text().strip() == f"step_{len(losses(output)):06d}"
