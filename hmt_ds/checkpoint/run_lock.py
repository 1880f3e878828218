"""Lock files in a run's folder, so that only one launch of the training (a "start", on all its ranks) trains into it.

Each start writes its own lock file, ``run.ID.lock``, and then looks for others. If all others belong to dead starts, it
holds the run. As every start writes before it looks, of two starts at least one sees the other. A start on the same
machine is dead if its process is gone; on another machine, if its lock file no longer changes, which a living start
rewrites every few seconds. So no clocks are compared, and the file system needs no locks of its own. Imports no torch.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hmt_ds.distributed.processes import start_of

logger = logging.getLogger(__name__)

LOCKS = "run.*.lock"
BEAT = 5.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds without one after which a start on another machine counts as dead
POLL = 0.5  # seconds between two looks at another start's file


class RunLock:
    """The lock of a run's folder, held by one launch of the training for all its ranks.

    Args:
        folder: folder of the run; created if it is missing.
        lost: called in a thread with a line for the user if another launch has removed this lock file. That happens to
            a process that was suspended for a while; it must then end, because the other launch trains into the folder.
    """

    def __init__(self, folder: Path, lost: Callable[[str], object]):
        name = uuid.uuid4().hex
        self.folder, self.file, self.lost = folder, folder / LOCKS.replace("*", name), lost
        self.created_folder = not folder.exists()
        self.description = json.dumps(this_process())
        self.holds, self.beats, self.ended = False, 0, threading.Event()

    def acquire(self) -> str | None:
        """Take the lock of the run's folder, so that no other launch of the training can.

        Returns:
            A line for the user that says why the lock could not be taken; None if it was.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file.touch()
            self.write()
            threading.Thread(target=self.beat, daemon=True).start()
            problem = self.contest()
            self.holds = problem is None
            self.write()
        except OSError as error:
            problem = (
                f"training.output: {self.folder} cannot be written: {error.strerror}: name another folder, or "
                "free space"
            )
        if problem:
            self.release()
        return problem

    def contest(self) -> str | None:
        """Wait until no other living launch of the training contends for the run's folder.

        Returns:
            None if the lock may be taken; a line for the user if another launch has precedence.
        """
        rivals = self.rivals()
        for _ in range(round(PATIENCE / POLL)):
            # of two starts that look at the same time, the one with the later name gives way
            for name, content in rivals.items():
                if "\nholds" in content or name < self.file.name:
                    return in_use(self.folder, content)
            if not rivals:
                return None
            time.sleep(POLL)
            rivals = self.rivals()
        return in_use(self.folder, next(iter(rivals.values()))) if rivals else None

    def rivals(self) -> dict[str, str]:
        """Return the lock files of other living launches of the training, content by file name; delete those of dead
        ones."""
        found = {}
        for other in self.folder.glob(LOCKS):
            if other != self.file and (content := sign_of_life(other)) is not None:
                found[other.name] = content
            elif other != self.file:
                other.unlink(missing_ok=True)
        return found

    def write(self) -> None:
        """Write the lock file: a description of the process, whether it holds the run or waits, and a counter of
        writes.

        Raises:
            FileNotFoundError: another launch of the training has removed the file.
        """
        with self.file.open("r+") as out:
            out.write(f"{self.description}\n{'holds' if self.holds else 'waits'} {self.beats:020d}\n")
            out.flush()
            os.fsync(out.fileno())  # on a network file system other machines see it now

    def beat(self) -> None:
        """Rewrite the lock file every few seconds until the lock is released or lost, to show that this
        process lives."""
        while not self.ended.wait(BEAT):
            self.beats += 1
            try:
                self.write()
            except FileNotFoundError:
                if not self.ended.is_set():
                    self.lost(f"{self.file} was removed: another start, to which this one seemed dead, trains there")
                return
            except OSError:  # a full disk, or a server that is away for a while
                continue

    def release(self) -> None:
        """Remove the lock file, so that another launch can train into the folder."""
        self.ended.set()
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
            if self.created_folder:
                self.folder.rmdir()  # if nothing was written


def this_process() -> dict[str, object]:
    """Return what identifies the current process among those of all machines and times: ``host``, ``machine`` (boot and
    container), ``pid``, ``ticks`` (its start, in clock ticks since boot) and ``since`` (date and time)."""
    here = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "ticks": start_of(os.getpid())}
    return here | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}


def machine() -> str:
    """Return a text that identifies this machine, its boot and its container, within which process ids are unique."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def sign_of_life(lock: Path) -> str | None:
    """Return the content of a lock file whose process lives; None if the process is dead or has removed the file.

    For a process on another machine, this waits some seconds for the file to change.
    """
    content = read_lock(lock)
    if content is None or (alive := lives(content)) is not None:
        return content if content and alive else None
    logger.warning("%s; waiting %.0f s for a sign of life", in_use(lock.parent, content), PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(POLL)
        if (now := read_lock(lock)) is None:
            return None
        if now != content and process_in(now):
            return now
    return None


def read_lock(lock: Path) -> str | None:
    """Return the content of a lock file; None if it was removed."""
    try:
        return lock.read_text(errors="replace")
    except FileNotFoundError:
        return None


def process_in(content: str) -> dict[str, object]:
    """Return the process that a lock file describes, such as ``{"pid": 12, "host": "node1"}``.

    An empty dict if the content is damaged.

    Args:
        content: content of the lock file.
    """
    try:
        found = json.loads(content.partition("\n")[0])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def lives(content: str) -> bool | None:
    """Return whether the process that a lock file describes lives; None if it is on another machine and cannot be seen.

    Args:
        content: content of the lock file.
    """
    found = process_in(content)
    pid, ticks = found.get("pid"), found.get("ticks")
    if found.get("machine") != machine() or ticks is None or not isinstance(pid, int):
        return None
    return start_of(pid) == ticks


def held_here(folder: Path) -> str | None:
    """Return a line for the user if a living process of this machine holds the lock of a run's folder; else None."""
    with suppress(OSError):
        found = [content for lock in folder.glob(LOCKS) if (content := read_lock(lock)) and lives(content)]
        return in_use(folder, found[0]) if found else None
    return None


def in_use(folder: Path, content: str) -> str:
    """Return a line for the user that says which process trains into a run's folder.

    Args:
        folder: folder of the run.
        content: content of that process's lock file.
    """
    found = process_in(content)
    who = f"process {found.get('pid')} on {found.get('host')}, since {found.get('since')}" if found else "unreadable"
    return f"training.output: another start trains into {folder} ({who}): stop it, or name another folder"
