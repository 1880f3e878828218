"""wandb and TensorBoard: the metrics as ``train/NAME``. A run that is resumed goes on in the same curves."""

import os
from pathlib import Path
from typing import Any

STEP = "train/step"


class Wandb:
    """One run of wandb for all starts of a run; its id is kept in ``wandb_run_id``.

    wandb's own counter cannot be turned back, and online it would drop the steps that are done again. So each row says
    its step itself, and the curves are drawn over that: a step that is done again stands there twice.

    Args:
        folder: of the run.
        mode: ``offline`` or ``online``. ``WANDB_MODE`` and ``WANDB_DIR`` in the environment go first.
        project: wandb's.
    """

    def __init__(self, folder: Path, mode: str, project: str):
        import wandb

        stored = folder / "wandb_run_id"
        self.run = wandb.init(
            id=stored.read_text().strip() if stored.exists() else None,
            resume="allow",
            project=project,
            group=folder.name,
            mode=os.environ.get("WANDB_MODE", mode),  # type: ignore[arg-type]
            dir=os.environ.get("WANDB_DIR", str(folder)),
        )
        stored.write_text(self.run.id)
        self.run.define_metric("train/*", step_metric=STEP)

    def write(self, row: dict[str, Any]) -> None:
        """Send one step."""
        self.run.log(named(row) | {STEP: row["step"]})

    def close(self) -> None:
        """End this start's part of the run."""
        self.run.finish()


class TensorBoard:
    """Event files in ``tensorboard``.

    Args:
        folder: of the run.
        resume_step: TensorBoard hides what it has of later steps.
    """

    def __init__(self, folder: Path, resume_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """Send one step."""
        for name, value in named(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        """End the file."""
        self.writer.close()


def named(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a step, under the names that the monitors show."""
    return {f"train/{name}": value for name, value in row.items() if name != "step" and value is not None}
