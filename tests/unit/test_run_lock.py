"""The lock of a run's folder: one start holds it, a dead one loses it, whatever machine it was on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from hmt_ds.checkpoint import run_lock
from hmt_ds.checkpoint.run_lock import LOCKS, RunLock, held_here

# waits for its turn, takes the lock, and writes when it came and went
START = """
import sys, time
from pathlib import Path
from hmt_ds.checkpoint import run_lock
folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
run_lock.BEAT, run_lock.PATIENCE, run_lock.POLL = 0.05, 0.5, 0.02
if name.startswith("other"):  # as on another machine, whose processes cannot be looked up
    run_lock.machine = lambda: name
lock = run_lock.RunLock(folder, print)
print("ready", flush=True)
sys.stdin.readline()
problem = lock.acquire()
print(problem or "held", flush=True)
if not problem:
    for word in ("in", "out"):
        with (folder / "log").open("a") as log:
            log.write(f"{word} {name}\\n")
        time.sleep(seconds if word == "in" else 0)
    lock.release()
"""


def nobody(problem: str) -> None:
    pytest.fail(problem)


def process(folder: Path, name: str, seconds: float) -> "subprocess.Popen[str]":
    """Start a process that can take the lock."""
    words = [sys.executable, "-c", START, str(folder), name, str(seconds)]
    found = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert found.stdout and found.stdout.readline() == "ready\n"
    return found


def go(*processes: "subprocess.Popen[str]") -> None:
    """Let processes take the lock at once."""
    for one in processes:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for name, seconds in (("BEAT", 0.05), ("PATIENCE", 0.5), ("POLL", 0.02)):
        monkeypatch.setattr(run_lock, name, seconds)


def test_a_start_leaves_nothing(tmp_path):
    """Not even the folder is left, if nothing was written there."""
    for folder, left in ((tmp_path, True), (tmp_path / "new", False)):
        lock = RunLock(folder, nobody)
        assert lock.acquire() is None and len(list(folder.glob(LOCKS))) == 1
        lock.release()
        assert folder.exists() == left and not list(folder.glob("*"))


def test_another_start_here_is_named_at_once(tmp_path):
    lock = RunLock(tmp_path, nobody)
    assert held_here(tmp_path) is None and lock.acquire() is None
    began = time.monotonic()
    problem = RunLock(tmp_path, nobody).acquire()
    assert time.monotonic() - began < 0.2 and problem == held_here(tmp_path)
    assert problem.startswith(f"training.output: another start trains into {tmp_path} (process {os.getpid()} on ")
    lock.release()
    again = RunLock(tmp_path, nobody)
    assert again.acquire() is None
    again.release()


@pytest.mark.parametrize("name", ["here", "other"])
def test_a_killed_start_loses_the_lock(tmp_path, name):
    """At once on this machine; on another one after a time without a sign of life."""
    dead = process(tmp_path, name, 60)
    go(dead)
    assert dead.stdout.readline() == "held\n"
    assert "another start" in str(RunLock(tmp_path, nobody).acquire())
    dead.kill()
    dead.wait()
    assert held_here(tmp_path) is None and len(list(tmp_path.glob(LOCKS))) == 1
    began = time.monotonic()
    lock = RunLock(tmp_path, nobody)
    assert lock.acquire() is None and (time.monotonic() - began < 0.3) == (name == "here")
    lock.release()


def write_lock(folder: Path, **changes: Any) -> Path:
    """Write the lock of a start like this process, but for some changes."""
    file = folder / "run.0.lock"
    file.write_text(f"{json.dumps(run_lock.this_process() | changes)}\nholds 0\n")
    return file


def test_a_process_with_the_number_of_a_dead_one_is_not_the_holder(tmp_path):
    write_lock(tmp_path)
    assert held_here(tmp_path)
    write_lock(tmp_path, ticks="1")
    lock = RunLock(tmp_path, nobody)
    assert held_here(tmp_path) is None and lock.acquire() is None
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "5\n0", '{"pid": "x"}\n', "\x00" * 9, "é", "[" * 100_000])
def test_a_damaged_lock_is_waited_for(tmp_path, content):
    """It may only just be written."""
    (tmp_path / "run.0.lock").write_text(content)
    began, lock = time.monotonic(), RunLock(tmp_path, nobody)
    assert lock.acquire() is None and time.monotonic() - began > 0.4
    lock.release()


def test_a_start_that_was_silent_for_too_long_is_told(tmp_path):
    said: list[str] = []
    lock = RunLock(tmp_path, said.append)
    assert lock.acquire() is None
    lock.file.unlink()
    other = RunLock(tmp_path, nobody)
    assert other.acquire() is None
    time.sleep(0.3)
    lock.release()
    assert len(said) == 1 and "another start, to which this one seemed dead" in said[0]
    assert list(tmp_path.glob(LOCKS)) == [other.file]
    other.release()


def test_of_two_that_wait_one_gives_way(tmp_path):
    """The one with the later name; the other one waits for it to go, though not forever."""
    write_lock(tmp_path).write_text((tmp_path / "run.0.lock").read_text().replace("holds", "waits"))
    assert "another start trains" in str(RunLock(tmp_path, nobody).acquire())
    later = (tmp_path / "run.0.lock").rename(tmp_path / "run.z.lock")
    Timer(0.2, later.unlink).start()
    lock, began = RunLock(tmp_path, nobody), time.monotonic()
    assert lock.acquire() is None and time.monotonic() - began > 0.15
    lock.release()
    write_lock(tmp_path).write_text((write_lock(tmp_path)).read_text().replace("holds", "waits"))
    (tmp_path / "run.0.lock").rename(later)
    assert "another start trains" in str(RunLock(tmp_path, nobody).acquire())
    assert list(tmp_path.glob(LOCKS)) == [later]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written: " in str(RunLock(tmp_path / "file", nobody).acquire())


@pytest.mark.parametrize("where", ["here", "other"])
def test_of_many_starts_at_once_one_at_a_time_trains(tmp_path, where):
    """Beside the lock of a dead start, which all of them want to remove."""
    for turn in range(5 if where == "here" else 2):
        folder = tmp_path / str(turn)
        folder.mkdir()
        write_lock(folder, **({"ticks": "1"} if where == "here" else {"machine": "gone"}))
        starts = [process(folder, f"{where} {number}", 0.3) for number in range(4)]
        go(*starts)
        said = [start.communicate(timeout=60)[0].strip() for start in starts]
        assert "held" in said and all(one == "held" or "another start trains" in one for one in said), said
        log = (folder / "log").read_text().splitlines()
        assert [line.split()[0] for line in log] == ["in", "out"] * (len(log) // 2), log
        assert [line.split()[1:] for line in log[::2]] == [line.split()[1:] for line in log[1::2]]
        assert sorted(file.name for file in folder.iterdir()) == ["log"]
