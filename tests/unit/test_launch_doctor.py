"""`hmt-ds launch ... doctor`: machines that hang, fail or differ; tests/cluster runs it on simulated machines."""

import sys
import time
from pathlib import Path

import pytest

from hmt_ds import cli
from hmt_ds.launch import allocation, ask_nodes, node_doctor
from hmt_ds.launch.ask_nodes import Answer, ask
from hmt_ds.launch.compare_nodes import print_comparison
from hmt_ds.launch.doctor import Finding

NEW, OLD = "torch 2.13.0, built for CUDA 13.0", "torch 2.12.1, built for CUDA 13.0"


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, list[str]]:
    """Run `hmt-ds launch` in this process; return exit code, output and error lines."""
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "launch", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return end.value.code or 0, said.out, said.err.splitlines()


def node(*findings: Finding) -> Answer:
    """Return the answer of a machine that made these findings."""
    return Answer({"finding": [list(one) for one in findings]}, None)


def test_every_way_of_answering():
    """A machine that hangs, or whose command fails, gets a line that says so, and does not delay the others."""
    commands = {
        "good": ["echo", 'a banner\n{"finding": ["torch", "2.13", "ok", ""]}\n{"meeting": ["10.0.0.1", 7]}'],
        "hanging": ["sh", "-c", 'echo \'{"finding": ["disk", "", "ok", ""]}\'; sleep 60'],
        "silent": ["sleep", "60"],
        "failing": ["sh", "-c", "echo first >&2; echo second >&2; exit 3"],
        "without a word": ["false"],
        "down": ["sh", "-c", "echo 'srun: error: launch failed on a' >&2; echo 'srun: Timed out' >&2; exit 1"],
        "started by srun": ["sh", "-c", "echo 'no module' >&2; echo 'srun: error: a: exit code 1' >&2; exit 1"],
    }
    started = time.monotonic()
    found = ask(lambda _, command: command, commands, seconds=2)
    assert time.monotonic() - started < 10
    assert found.pop("good") == Answer({"finding": [["torch", "2.13", "ok", ""]], "meeting": ["10.0.0.1", 7]}, None)
    assert {host: one.problem for host, one in found.items()} == {
        "hanging": "no answer within 2 s, nothing after its check of disk",
        "silent": "no answer within 2 s",
        "failing": f"second ({ask_nodes.SAME_PATH})",
        "without a word": f"exit code 1 ({ask_nodes.SAME_PATH})",
        "down": "srun: error: launch failed on a: see sinfo",
        "started by srun": f"no module ({ask_nodes.SAME_PATH})",
    }


def test_a_connection_that_hangs_is_given_up(monkeypatch):
    """The machine cannot end the command by itself, as after a power cut."""
    monkeypatch.setattr(ask_nodes, "GRACE", 0)
    found = ask(lambda *_: ["sleep", "60"], {"a": []}, seconds=1)
    assert found["a"].problem == "no answer within 1 s"


def test_ssh_names_a_machine_that_it_does_not_reach(monkeypatch, tmp_path):
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'no route' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (found,) = ask(ask_nodes.through_ssh, {"a": ["true"]}, seconds=5).values()
    assert found.problem == "cannot be reached (no route): let `ssh a` work without a password"


def test_secrets_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("DS_SECRET_TOKEN", "hidden")
    monkeypatch.setenv("HF_TOKEN", "hidden")
    words = " ".join(ask_nodes.through_ssh("a", ["true"]))
    assert "NCCL_DEBUG=WARN" in words and "hidden" not in words


def test_equal_machines(capsys):
    same = [Finding("torch", NEW), Finding("GPUs", "8 x H100")]
    answers = {f"n{i}": node(*same, Finding("disk", f"/x: {i} GB free, writes 900 MB/s")) for i in range(3)}
    links = {f"n{i}": Answer({f"rank {i}": ["nccl", 0.001 * i, 40e9, 80e9 - i]}, None) for i in range(3)}
    assert print_comparison(answers, links) == 0
    out = capsys.readouterr().out
    assert f"torch        {NEW}\nGPUs         8 x H100\nall-reduce   80.00 GB/s over 3 nodes (nccl)\n" in out
    assert "n2    /x: 2 GB free, writes 900 MB/s  +0.001 s  40.00 GB/s" in out and "error" not in out


def test_each_difference_is_a_line(capsys):
    """The majority is right; what differs only by nature, such as free space, is no difference."""
    broken = Finding("packages", "deepspeed not installed", "error", "install it")
    answers = {
        "a": node(Finding("torch", OLD), Finding("disk", "1 GB")),
        "b": node(Finding("torch", NEW), Finding("disk", "2 GB", "note", "slow")),
        "c": node(Finding("torch", NEW), broken),
        "d": node(Finding("torch", NEW), Finding("deepspeed", "0.19", "note", "install a compiler")),
        "e": Answer({"finding": []}, "no answer within 9 s"),
    }
    links = {
        "a": Answer({"rank 0": ["gloo", 0.0, 1e9, 1e8]}, None),
        "b": Answer({"rank 1": ["gloo", 31.0, 1e8, 1e8]}, None),
        "d": Answer({"rank 2": ["gloo", 0.5, 9e8, 1e8]}, None),
    }
    assert print_comparison(answers, links) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("note: ", "error: "))] == [
        "note: b: disk: slow",
        "note: d: deepspeed: install a compiler",
        "error: e: no answer within 9 s",
        "error: c: packages: deepspeed not installed; install it",
        "error: a: torch differs: torch 2.12.1, and torch 2.13.0 on the others",
        "error: b: clock +30.5 s off the other nodes: set up NTP there",
        "error: b: 0.10 GB/s to a and d, elsewhere up to 1.00 GB/s",
    ]
    assert lines[-1] == "next         mend the errors above"


def test_a_machine_that_fails_only_with_others(capsys):
    answers = {"a": node(Finding("torch", NEW)), "b": node(Finding("torch", NEW))}
    links = dict.fromkeys(answers, Answer({}, "no answer within 9 s"))
    assert print_comparison(answers, links) == 2
    assert "error: b: between the nodes: no answer within 9 s\n" in capsys.readouterr().out


def test_who_takes_part_in_the_measurement():
    """A name that does not resolve is an error, but the machines may still reach each other."""
    address = {"meeting": ["10.0.0.1", 7]}
    assert allocation.can_meet(Answer(address | {"finding": [["names", "", "error", ""]]}, None))
    assert not allocation.can_meet(Answer(address | {"finding": [["packages", "", "error", ""]]}, None))
    assert not allocation.can_meet(Answer(address | {"finding": []}, "no answer"))
    assert not allocation.can_meet(Answer({"finding": []}, None))


def test_findings_about_a_launch(tmp_path, monkeypatch):
    found = list(node_doctor.names(["localhost", "no.such.host.invalid"]))
    assert found[0].level == "error" and found[0].text == "cannot resolve no.such.host.invalid"
    monkeypatch.setattr(node_doctor, "examine", lambda _: iter([Finding("packages", "")]))
    monkeypatch.setattr(node_doctor, "number_of_gpus", lambda _: 1)
    levels = {one.name: one.level for one in node_doctor.findings(tmp_path, 2, ["localhost"])}
    assert levels == {"project": "ok", "packages": "ok", "ranks": "error", "names": "ok"}
    assert [one.level for one in node_doctor.findings(tmp_path / "none", 0, [])] == ["ok", "error"]


@pytest.mark.parametrize(
    ("words", "errors"),
    [
        (["ssh", "doctor", "--nodes", "2"], ["--nodes: not used by `launch ssh doctor`: leave it out"]),
        (
            ["slurm", "doctor", "--tries", "2", "--hostfile", "x"],
            [f"--{name}: not used by `launch slurm doctor`: leave it out" for name in ("hostfile", "tries")],
        ),
        (["mpi", "doctor", "--training.steps", "2"], ["--training.steps: doctor reads no recipe: leave it out"]),
        (["ssh", "doctor", "--folder", "no"], ["--folder: no: no such folder: name the folder that runs will be "]),
        (["ssh", "doctor", "--hostfile", "no"], ["no: No such file or directory; a hostfile has a line `NAME "]),
        (["slurm", "doctor"], ["salloc is not on the PATH: start this on a Slurm login node, or use launch ssh "]),
        (
            ["ssh", "a.yaml"],
            ["launch ssh: only checks machines: to train, run HOSTFILE=FILE bash launch/hostfile.sh a.yaml"],
        ),
        (["slurm", "a.yaml", "--folder", "."], ["--folder: only with `launch ... doctor`: leave it out"]),
    ],
    ids=" ".join,
)
def test_wrong_options(monkeypatch, capsys, tmp_path, words, errors):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    Path("a.yaml").write_text("")
    code, _, found = run(monkeypatch, capsys, *words)
    assert code == 2 and len(found) >= len(errors)
    assert all(line.startswith(f"error: {error}") for line, error in zip(found, errors, strict=False)), found


def test_outside_of_a_job_salloc_runs_the_same_command(monkeypatch, capsys, tmp_path):
    started = []

    def execute(_: str, words: list[str]) -> None:
        started.append(words)
        raise KeyboardInterrupt

    monkeypatch.setattr(allocation.os, "execvp", execute)
    monkeypatch.setattr(allocation.shutil, "which", lambda _: "salloc")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    words = ("slurm", "doctor", "--nodes", "4", "--partition", "big", "--sbatch", "qos=high", "--folder", str(tmp_path))
    assert run(monkeypatch, capsys, *words)[0] == 130
    expected = ["--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=15", "--partition=big", "--qos=high"]
    assert started[0][:7] == ["salloc", *expected]
    assert started[0][-5:] == ["launch", "slurm", "doctor", "--folder", str(tmp_path)]
