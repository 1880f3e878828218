"""Damage to any file of a checkpoint is found before anything is loaded, and the checkpoint before it is used."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hmt_ds.checkpoint import Retention, Saver, newest_intact
from hmt_ds.checkpoint.files import (
    MANIFEST,
    delete_old,
    find_damage,
    list_checkpoints,
    read_manifest,
    start_partial,
    write_manifest,
)
from hmt_ds.checkpoint.fragments import Fragment
from hmt_ds.checkpoint.rank_state import rank_tensors
from hmt_ds.checkpoint.save import write_share
from hmt_ds.memory import MemoryState

FILES = (MANIFEST, "progress.json", "fragments_00000_000.safetensors", "rank_00000.safetensors")


def write(folder: Path, step: int) -> Path:
    """Write a checkpoint of one rank as the Saver does, with weights seeded by the step."""
    torch.manual_seed(step)
    target = folder / f"step_{step:06d}"
    start_partial(target)
    parts = [Fragment(n, (3, 4), 0, {k: torch.randn(12) for k in ("weight", "exp_avg")}) for n in ("one", "two")]
    memory = MemoryState.empty(2, 1, 4, 1, dtype=torch.float32, device=torch.device("cpu"), cached=2)
    write_share(target, parts, rank_tensors(memory, torch.device("cpu")), json.dumps({"step": step, "identity": {}}))
    Saver(folder, {}, Retention()).complete(target)
    return target


def truncate(file: Path, other: Path) -> None:
    """Cut off the last byte."""
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path, other: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path, other: Path) -> None:
    """Empty the file."""
    file.write_bytes(b"")


def delete(file: Path, other: Path) -> None:
    """Delete the file."""
    file.unlink()


def swap(file: Path, other: Path) -> None:
    """Replace the file with another step's."""
    shutil.copy(other, file)


# the message besides the file's name: for files that the manifest lists, and for the manifest itself
WAYS: dict[Callable[[Path, Path], None], tuple[str, str]] = {
    truncate: ("were written", "cannot be read"),
    flip: ("has changed: SHA-256", ""),
    empty: ("has 0 bytes, but", "cannot be read"),
    delete: ("is missing", "No such file"),
    swap: ("", ""),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_found_and_the_one_before_taken(tmp_path, name, way):
    before, newest = write(tmp_path, 4), write(tmp_path, 8)
    assert sorted(file.name for file in newest.iterdir()) == sorted(FILES)
    assert len({file.stat().st_mode for file in newest.iterdir()}) == 1  # all files have the same permissions
    assert (before / name).read_bytes() != (newest / name).read_bytes()
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == newest and not said
    way(newest / name, before / name)
    assert newest_intact(tmp_path, said.append) == before
    assert len(said) == 1 and str(newest) in said[0] and "\n" not in said[0]
    # with another step's manifest the files differ from the listed ones
    named = name if (name, way) != (MANIFEST, swap) else "fragments_00000_000.safetensors"
    assert named in said[0] and WAYS[way][name == MANIFEST] in said[0], said


def test_every_bit_of_a_manifest_counts(tmp_path):
    """Bits that no file's hash depends on count too, such as a fragment's start or name."""
    checkpoint = write(tmp_path, 4)
    whole = (checkpoint / MANIFEST).read_bytes()
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        (checkpoint / MANIFEST).write_bytes(content)
        assert find_damage(checkpoint), (place, content[max(0, place // 8 - 20) : place // 8 + 20])


def test_all_damaged(tmp_path):
    """Without an intact checkpoint none is returned, and each damaged one is named."""
    for step in (4, 8):
        (write(tmp_path, step) / "progress.json").unlink()
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) is None
    assert len(said) == 2


def test_latest_is_for_people(tmp_path):
    """`latest` may be damaged or missing, for instance after a crash before it was written."""
    write(tmp_path, 4)
    newest = write(tmp_path, 8)
    assert (tmp_path / "latest").read_text() == newest.name
    for content in (b"step_000004", b"step_000099", b"", b"\xff\x00"):
        (tmp_path / "latest").write_bytes(content)
        assert newest_intact(tmp_path, pytest.fail) == newest
    (tmp_path / "latest").unlink()
    assert newest_intact(tmp_path, pytest.fail) == newest


def test_only_checkpoints_are_taken_for_one(tmp_path):
    """Leftovers of killed runs and other files are no checkpoints; step 1,000,000 is newer than 999,999."""
    steps = [write(tmp_path, step) for step in (999_999, 1_000_000)]
    shutil.copytree(steps[1], tmp_path / ".step_2000000.partial")
    shutil.copytree(steps[1], tmp_path / "step_2000000.bak")
    (tmp_path / "step_3000000").write_text("a file")
    assert list_checkpoints(tmp_path) == steps[::-1]


def test_a_disk_that_cannot_be_read(tmp_path, monkeypatch):
    """A disk error while a file is read counts as damage."""
    before, newest = write(tmp_path, 4), write(tmp_path, 8)
    right = Path.open

    def failing(path, *arguments, **options):
        if path == newest / "rank_00000.safetensors":
            raise OSError(5, "Input/output error", str(path))
        return right(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == before
    assert "rank_00000.safetensors cannot be read: [Errno 5]" in said[0]


def test_another_format_is_refused(tmp_path):
    checkpoint = write(tmp_path, 4)
    content = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(content | {"format": 2}))
    assert find_damage(checkpoint) == [f"{MANIFEST} has format 2, this version reads 1: use the version that wrote it"]


def test_same_step_again_replaces_the_broken_one(tmp_path):
    """A resumed run replaces the damaged checkpoint of the same step that it has skipped."""
    (write(tmp_path, 4) / "progress.json").write_text("")
    assert newest_intact(tmp_path, lambda text: None) is None
    again = write(tmp_path, 4)
    assert newest_intact(tmp_path, pytest.fail) == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000004"]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of this project catches it."""


CALLS = [(os, "fsync"), (os, "open"), (Path, "rename"), (Path, "replace"), (Path, "write_text"), (shutil, "rmtree")]


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the n-th call to the file system raise Killed."""
    calls = itertools.count()

    def counted(right: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == number:
                raise Killed
            return right(*arguments, **options)

        return call

    for place, name in CALLS:
        monkeypatch.setattr(place, name, counted(getattr(place, name)))


@pytest.mark.parametrize("broken", [False, True])
def test_killed_at_every_call_of_a_save(tmp_path, broken):
    """Before the rename the previous checkpoint is used, afterwards the new one, whatever `latest` says."""
    taken, number = [], 0
    while True:
        folder = tmp_path / str(number)
        before = write(folder, 4)
        if broken:  # a damaged checkpoint of the same step, which was skipped
            (write(folder, 8) / "progress.json").unlink()
        with pytest.MonkeyPatch.context() as monkeypatch:
            kill_at(monkeypatch, number)
            try:
                write(folder, 8)
                break
            except Killed:
                pass
        found = newest_intact(folder, lambda text: None)
        assert found in (before, folder / "step_000008")
        taken.append(found != before)
        assert write(folder, 12) == newest_intact(folder, pytest.fail)  # the next save removes the leftovers
        assert not list(folder.glob(".step_*"))
        number += 1
    assert taken == sorted(taken) and taken.count(False) > 5 and taken.count(True) > 2, taken


def steps_in(folder: Path) -> list[int]:
    """Return the steps of all checkpoints."""
    return sorted(int(path.name.removeprefix("step_")) for path in folder.iterdir() if path.name.startswith("step_"))


def test_the_newest_and_milestones_stay(tmp_path):
    for step in range(1, 9):
        delete_old(write(tmp_path, step), 2, 3)
    assert steps_in(tmp_path) == [3, 6, 7, 8]
    delete_old(tmp_path / "step_000008", None, None)
    assert steps_in(tmp_path) == [3, 6, 7, 8]


def test_broken_ones_do_not_count(tmp_path):
    """No intact checkpoint is deleted in favour of a damaged one, whether newer or older."""
    for step in (2, 4, 6, 12):
        write(tmp_path, step)
    for step in (6, 12):
        (tmp_path / f"step_{step:06d}" / "progress.json").unlink()
    delete_old(write(tmp_path, 8), 2, None)
    assert steps_in(tmp_path) == [4, 6, 8, 12]
    delete_old(write(tmp_path, 10), 1, None)
    assert steps_in(tmp_path) == [10, 12]


def test_manifest_keeps_what_it_is_given(tmp_path):
    """Names may contain any characters; the digest is of the parsed content, not of its spelling."""
    entries = {"ä.safetensors": {"bytes": 1, "sha256": "0", "fragments": [["wëight", 0, 4, ["weight"], [2, 2]]]}}
    write_manifest(tmp_path, entries)
    assert read_manifest(tmp_path) == entries
