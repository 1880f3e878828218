"""Slurm jobs that are stopped and requeued until their run is finished have the losses of an undisturbed run."""

import time
from pathlib import Path

import pytest
from conftest import PROJECT, Cluster, curve, wait_for_step, wait_until
from jobs import LAUNCH, SIZE, log_of, starts, submit, wait_for_start

pytestmark = pytest.mark.cluster


def tell_and_see_to_its_end(cluster: Cluster, job: str, output: Path, times: int) -> None:
    """Send USR1 to a requeueing job ``times`` times, then wait for it to complete."""
    for _ in range(times):
        before = starts(output)
        wait_for_step(output, len(curve(output)) + 3)
        cluster.check("head", "scancel", "--signal=USR1", job)
        wait_for_start(output, before + 1)
    assert cluster.wait(job, timeout=480) == "COMPLETED", log_of(output)
    assert cluster.job(job, "Restarts") == str(log_of(output).count("stopped after step"))


def test_told_twice(cluster, recipe, undisturbed, tmp_path):
    output = tmp_path / "run"
    tell_and_see_to_its_end(cluster, submit(cluster, recipe, output, "--tries", "2"), output, 2)
    assert starts(output) == 3 and curve(output) == undisturbed


@pytest.mark.slow  # minutes have to pass
@pytest.mark.timeout(1800)
def test_told_by_the_time_limit_and_nine_times_more(cluster, recipe, tmp_path):
    output, whole, steps = tmp_path / "run", tmp_path / "whole", ("--training.steps", "2500")
    local = ("bash", "launch/local.sh", str(recipe), "--ranks", "2", "--training.output", str(whole), *steps)
    cluster.check("node0", *local, timeout=600)
    job = submit(cluster, recipe, output, *steps, "--tries", "2", "--time", "2", "--sbatch", "signal=USR1@60")
    wait_for_start(output, 2)
    assert log_of(output).count("stopped after step") == 1 and "TIME LIMIT" not in log_of(output)
    cluster.check("head", "scontrol", "update", f"JobId={job}", "TimeLimit=10")  # or it is soon stopped again
    tell_and_see_to_its_end(cluster, job, output, 9)
    assert starts(output) == 11 and curve(output) == curve(whole)


def test_told_at_bad_moments(cluster, recipe, undisturbed, tmp_path):
    """Stop a job while it builds the model, while it writes a checkpoint, and during an evaluation."""
    output, places = tmp_path / "run", ("start", "saving", "evaluation")
    environment = {"PYTHONPATH": f"{PROJECT}/tests/cluster/slow:{PROJECT}", "HMT_DS_SLOW": str(tmp_path)}
    more = ("--checkpoint.every", "20", "--evaluation.every", "50", "--tries", "3")
    job = submit(cluster, recipe, output, *more, **environment)
    for place in places:
        wait_until((tmp_path / place).exists, lambda place=place: f"never at {place}: {log_of(output)}")
        cluster.check("head", "scancel", "--signal=USR1", job)
    assert cluster.wait(job) == "COMPLETED", log_of(output)
    assert cluster.job(job, "Restarts") == str(len(places)), log_of(output)
    said = [line for line in log_of(output).splitlines() if "stopped " in line]
    assert "before the first step" in said[0] and "after step 21;" in said[1] and "after step 50;" in said[2], said
    assert curve(output) == undisturbed


def test_preempted_by_a_higher_partition(cluster, recipe, undisturbed, tmp_path):
    output = tmp_path / "run"
    job = submit(cluster, recipe, output)
    wait_for_step(output, 3)
    began = time.monotonic()
    urgent = cluster.submit(
        "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent", "--wrap", "true"
    )
    wait_until(lambda: "stopped after step" in log_of(output), lambda: log_of(output))
    saved = time.monotonic() - began
    assert cluster.wait(urgent) == "COMPLETED"
    wait_for_step(output, len(curve(output)) + 1)
    print(f"preempted: saved after {saved:.0f} s, training again after {time.monotonic() - began:.0f} s, 0 steps lost")
    assert cluster.wait(job) == "COMPLETED", log_of(output)
    assert "stopped after step" in log_of(output) and starts(output) == 2
    assert curve(output) == undisturbed


def test_cancelled(cluster, recipe, tmp_path):
    """scancel ends a job for good, also after it was requeued."""
    output = tmp_path / "run"
    job = submit(cluster, recipe, output, "--training.steps", "1000000")
    wait_for_step(output, 3)
    cluster.check("head", "scancel", "--signal=USR1", job)
    wait_for_start(output, 2)
    wait_for_step(output, len(curve(output)) + 3)
    cluster.check("head", "scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    assert starts(output) == 2 and cluster.job(job, "Restarts") == "1"


def test_gives_up_without_progress(cluster, recipe, tmp_path):
    """A job whose rank fails in the third step of every start, before any checkpoint, is not requeued forever."""
    output = tmp_path / "run"
    environment = {"PYTHONPATH": f"{PROJECT}/tests/distributed/breaks:{PROJECT}", "HMT_DS_BREAK": "out_of_memory"}
    job = submit(cluster, recipe, output, "--tries", "1", **environment)
    assert cluster.wait(job) == "FAILED", log_of(output)
    assert cluster.job(job, "ExitCode") == "2:0" and cluster.job(job, "Restarts") == "1"
    assert f"starts of job {job} that found no checkpoint and got no further: 1." in log_of(output)


def test_a_wrong_recipe_is_not_tried_again_and_nothing_follows_it(cluster, recipe, tmp_path):
    output = tmp_path / "run"
    words = (*LAUNCH, str(recipe), *SIZE, "--training.output", str(output), "--data.train.source", "no.txt")
    train, evaluate = [line.split()[1] for line in cluster.check("head", *words, "--then", "evaluate").splitlines()[:2]]
    assert cluster.wait(train) == "FAILED" and cluster.job(train, "ExitCode") == "2:0"
    assert "error: data.train: 'no.txt' is neither a file nor a folder" in log_of(output)
    assert cluster.wait(evaluate) == "CANCELLED"
    assert starts(output) == 1


def test_array_and_chain(cluster, recipe, undisturbed, tmp_path):
    """An array of two runs with different seeds; each is evaluated, then converted."""
    output = tmp_path / "run"
    words = (*LAUNCH, str(recipe), *SIZE, "--training.output", str(output), "--array", "2")
    printed = cluster.check("head", *words, "--then", "evaluate", "--then", "convert --dtype bf16")
    last = printed.splitlines()[2].split()[1]
    for number in range(2):
        logs = lambda: "".join(file.read_text() for file in (output / "jobs").glob("*.out"))  # noqa: E731
        assert cluster.wait(f"{last}_{number}", timeout=480) == "COMPLETED", logs()
        run = output / f"seed_{number}"
        assert len(list((run / "evaluation").glob("*.json"))) == 1
        assert (run / "converted" / "model.safetensors").exists()
    assert curve(output / "seed_0") == undisturbed
    assert curve(output / "seed_1") != undisturbed
