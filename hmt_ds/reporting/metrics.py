"""Metrics of a run: a JSON line per logged step, and the same numbers to wandb, TensorBoard and CSV.

Names: loss (nats per label), perplexity, learning_rate, gradient_norm, tokens_per_second (per rank, fresh tokens), mfu,
peak_memory_gib (of the rank that reports), recall_distance (segments), seconds (of the step), skipped (steps so far).
"""

import json
import os
from pathlib import Path
from typing import Any

from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.monitor import MonitorMaster


class MetricsLog:
    """``metrics.jsonl`` in the run's folder.

    Args:
        file: is appended to.
        resume_step: lines after this step are dropped: that part of the run is done again.
    """

    def __init__(self, file: Path, resume_step: int = 0):
        kept = [row for row in read_metrics(file) if row["step"] <= resume_step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        file.write_text(text)
        self.file = file

    def write(self, row: dict[str, Any]) -> None:
        """Append one step; floats are written so that they read back as the same bits."""
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The rows of a run so far; a torn last line of a killed run is left out."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Monitors:
    """wandb, TensorBoard and CSV through DeepSpeed's monitors.

    Args:
        folder: of the run.
        wandb: ``off``, ``offline`` or ``online``.
        project: wandb's project.
        tensorboard, csv: whether to write these.
    """

    def __init__(self, folder: Path, *, wandb: str, project: str, tensorboard: bool, csv: bool):
        if wandb != "off":
            os.environ.setdefault("WANDB_MODE", wandb)
            os.environ.setdefault("WANDB_DIR", str(folder))
        self.master = MonitorMaster(
            get_monitor_config(
                {
                    "wandb": {"enabled": wandb != "off", "project": project, "group": folder.name},
                    "tensorboard": {"enabled": tensorboard, "output_path": str(folder), "job_name": "tensorboard"},
                    "csv_monitor": {"enabled": csv, "output_path": str(folder), "job_name": "csv"},
                }
            )
        )

    def close(self) -> None:
        """Finish wandb's run; the others write as they go."""
        if self.master.wandb_monitor is not None and self.master.wandb_monitor.enabled:
            import wandb

            wandb.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Send one step."""
        if self.master.enabled:
            events = [(f"train/{k}", v, row["step"]) for k, v in row.items() if k != "step" and v is not None]
            self.master.write_events(events)
