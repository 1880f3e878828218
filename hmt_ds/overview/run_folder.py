"""Read a run's folder (recipe, metrics, history, rank states, checkpoints), without torch, locks or changes."""

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hmt_ds.checkpoint.files import find_damage, list_checkpoints, run_of, step_number
from hmt_ds.checkpoint.run_lock import BEAT, LOCKS, lives, process_in
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import read_mapping
from hmt_ds.distributed.note_files import NOTES
from hmt_ds.reporting.history import read_history
from hmt_ds.reporting.metrics import read_metrics
from hmt_ds.reporting.monitors import Row

FRESH = 6 * BEAT  # seconds; a lock of another machine that is older belongs to a dead start


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run, as found on disk.

    Attributes:
        step: optimizer step of the checkpoint.
        time: when the checkpoint became visible, in seconds since 1970.
        bytes: size of all files together.
        damage: a line for each file that is missing or has another size.
    """

    step: int
    time: float
    bytes: int
    damage: tuple[str, ...]


@dataclass(frozen=True)
class RankNote:
    """What the watchdog process of a rank last wrote about the rank.

    Attributes:
        rank: number of the rank.
        host: name of the rank's machine.
        after: what the rank did last, such as ``step 12``.
        silent: seconds without progress of the rank when the note was written.
        stopped: whether the rank's process was suspended (SIGSTOP).
        age: seconds since the note was written.
    """

    rank: int
    host: str
    after: str
    silent: float
    stopped: bool
    age: float


class RunFolder:
    """The files in a run's folder, each read when it is first accessed.

    Args:
        folder: the run's folder, or that of one of its checkpoints.

    Raises:
        ConfigError: the folder is no run.
    """

    def __init__(self, folder: Path):
        self.folder = run_of(folder)
        if not self.folder.is_dir():
            raise ConfigError([f"{folder}: no such run: name the folder of a run (training.output)"])
        if not (self.folder / "recipe.yaml").is_file():
            raise ConfigError(
                [f"{folder}: not a run, it has no recipe.yaml: name the folder of a run (training.output)"]
            )
        self.recipe: dict[str, Any] = read_mapping(self.folder / "recipe.yaml")

    @property
    def name(self) -> str:
        """Name of the folder, without the path to it."""
        return self.folder.resolve().name

    @cached_property
    def rows(self) -> list[Row]:
        """Metrics of the logged steps from metrics.jsonl, oldest first: numbers by name, such as ``step``, ``loss``,
        ``seconds``."""
        return read_metrics(self.folder / "metrics.jsonl")

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Events of the run (starts, checkpoints, warnings, ...), oldest first, each with ``kind`` and ``time``
        (seconds since 1970)."""
        return read_history(self.folder)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the run's events of one kind, oldest first.

        Args:
            kind: the kind, such as ``rollback``.
        """
        return [event for event in self.history if event["kind"] == kind]

    @property
    def steps(self) -> int:
        """Number of optimizer steps that the recipe asks for."""
        return int(self.recipe["training"]["steps"])

    @property
    def step(self) -> int:
        """Newest known optimizer step: the last one in the metrics, or that of the newest checkpoint."""
        newest = self.rows[-1]["step"] if self.rows else 0
        return max([newest, *(checkpoint.step for checkpoint in self.checkpoints)])

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The run's checkpoints, oldest first, with damage found by the sizes of files, not their hashes."""
        found = []
        for folder in reversed(list_checkpoints(self.folder / "checkpoints")):
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            damage = tuple(find_damage(folder, hashes=False))
            found.append(Checkpoint(step_number(folder), folder.stat().st_mtime, size, damage))
        return found

    def holder(self) -> dict[str, object] | None:
        """Return the process that is training into the folder, as its lock file describes it.

        Returns:
            ``pid``, ``host`` and ``since`` as text, and ``age``, the seconds since the lock file was last renewed; None
            if no such process lives.
        """
        for lock in self.folder.glob(LOCKS):
            try:
                content, age = lock.read_text(errors="replace"), time.time() - lock.stat().st_mtime
            except OSError:  # released this moment
                continue
            alive = lives(content)
            if alive or (alive is None and age < FRESH):
                return process_in(content) | {"age": age}
        return None

    def ranks(self) -> list[RankNote]:
        """Return what each rank's watchdog process last wrote, sorted by rank; empty if no rank has a watchdog.

        Unreadable notes are left out, and so are notes of ranks that a restart with fewer ranks no longer has.
        """
        starts = self.events("start")
        number = int(starts[-1]["environment"]["ranks"]) if starts else None
        found = []
        for file in sorted((self.folder / NOTES).glob("rank_*.json")):
            try:
                note, age = json.loads(file.read_text()), time.time() - file.stat().st_mtime
                values = (note["host"], note["after"], note["silent"], note["stopped"])
                found.append(RankNote(note["rank"], *values, age=max(0.0, age)))
            except (OSError, ValueError, KeyError, TypeError):  # being replaced, or left by another version
                continue
        return [note for note in found if number is None or note.rank < number]
