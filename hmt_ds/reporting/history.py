"""The history of a run: a JSON line for each start, checkpoint, evaluation, warning and end, with the event's time.

Kinds: start (ranks, step, environment), checkpoint (step, seconds), evaluation (step, seconds), warning (step, text),
ranks (step, seconds of each rank's own work), rollback (step), stop, end, failed (step, text). Events are never
dropped: a resumed run appends to them.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from hmt_ds.reporting.alerts import Alerts

logger = logging.getLogger(__name__)

FILE = "history.jsonl"


class History:
    """Appends events to a run's history.jsonl and sends alerts; if the disk is full, it warns and the run continues.

    Args:
        folder: folder of the run.
        shown: whether this rank writes; on other ranks nothing happens.
    """

    def __init__(self, folder: Path, *, shown: bool = True):
        self.file, self.shown, self.failed = folder / FILE, shown, False
        self.alerts = Alerts(folder)

    def write(self, kind: str, step: int, **content: object) -> None:
        """Append an event to history.jsonl, with the present time, and send an alert if its kind calls for one.

        Args:
            kind: ``start``, ``checkpoint``, ``evaluation``, ``warning``, ``ranks``, ``rollback``, ``stop``, ``end`` or
                ``failed``.
            step: optimizer step of the run.
            content: further values, as JSON has them.
        """
        if not self.shown:
            return
        event = {"time": round(time.time(), 3), "kind": kind, "step": step, **content}
        try:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(event) + "\n")
        except OSError as error:
            if not self.failed:
                logger.warning("%s cannot be written: %s; training goes on", self.file, error.strerror)
            self.failed = True
        self.alerts.send(event)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the events of a run's history.jsonl, oldest first; an empty list if there is no such file.

    Args:
        folder: folder of the run.

    Returns:
        Events with ``time`` (seconds since 1970), ``kind``, ``step`` and further values. Lines that were cut short by a
        kill are left out.
    """
    found = []
    try:
        lines = (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and {"time", "kind", "step"} <= event.keys():
            found.append(event)
    return found
