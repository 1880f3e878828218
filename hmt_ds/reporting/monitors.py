"""Send metrics to wandb, TensorBoard and other trackers, under names such as ``train/loss``.

In wandb and TensorBoard a resumed run continues its earlier curves.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # the metrics of one step, by name; values are numbers or None
STEP = "train/step"


class Wandb:
    """Sends metrics to wandb; a resumed training run continues its wandb run, whose id is in the file ``wandb_run_id``.

    wandb's own step counter cannot be set back, and online it would drop the steps that a resumed run takes again. So
    each row has its step as a metric, and curves are drawn over that metric; a step that was taken twice appears twice.

    Args:
        folder: folder of the run.
        mode: ``offline`` or ``online``. ``WANDB_MODE`` and ``WANDB_DIR`` in the environment take precedence.
        project: name of the project in wandb.
        recipe: the resolved recipe as nested dicts, stored as wandb's configuration.
    """

    def __init__(self, folder: Path, mode: str, project: str, recipe: dict[str, object]):
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
        self.run.config.update(recipe, allow_val_change=True)
        for names in ("train/*", "evaluation/*"):
            self.run.define_metric(names, step_metric=STEP)

    def write(self, row: Row) -> None:
        """Send the metrics of one optimizer step to wandb.

        Args:
            row: ``step`` and the metrics by name; None for a missing value.
        """
        self.run.log(prefixed(row) | {STEP: row["step"]})

    def close(self) -> None:
        """Finish the wandb run; when training resumes, the same wandb run is continued."""
        self.run.finish()


class TensorBoard:
    """Writes metrics as TensorBoard event files into the folder ``tensorboard`` of a run.

    Args:
        folder: folder of the run.
        resume_step: last step before the run is resumed; TensorBoard hides events of later steps, which are taken
            again.
    """

    def __init__(self, folder: Path, resume_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, row: Row) -> None:
        """Write the metrics of one optimizer step as TensorBoard events.

        Args:
            row: ``step`` and the metrics by name; None for a missing value.
        """
        for name, value in prefixed(row).items():
            self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def close(self) -> None:
        """Close the TensorBoard event file."""
        self.writer.close()


class Tracker:
    """Sends metrics to one of the trackers that accelerate supports; a resumed training run is a new run in the
    tracker.

    Servers, accounts and folders are set in each tracker's own environment variables, such as ``MLFLOW_TRACKING_URI``.

    Args:
        folder: folder of the run; its name is the run's name in the tracker, and trackers that write files use it.
        name: accelerate's name of the tracker, such as ``mlflow``.
        project: name of the project or the experiment in the tracker.
        recipe: the resolved recipe as nested dicts, stored with the run, one value per key.
    """

    def __init__(self, folder: Path, name: str, project: str, recipe: dict[str, object]):
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's log asks for it; it takes over the process group that is there
        kind = LOGGER_TYPE_TO_CLASS[name]
        options = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
        if name in RUN_NAMES:
            options[RUN_NAMES[name]] = folder.name
        self.tracker = kind(project, **options)
        self.tracker.main_process_only = False  # metrics are written by one rank already
        self.tracker.start()
        self.tracker.store_init_configuration(dict(dotted(recipe)))

    def write(self, row: Row) -> None:
        """Send the metrics of one optimizer step to the tracker (such as mlflow).

        Args:
            row: ``step`` and the metrics by name; None for a missing value.
        """
        self.tracker.log(prefixed(row), step=row["step"])

    def close(self) -> None:
        """Finish the run in the tracker (such as mlflow)."""
        self.tracker.finish()


RUN_NAMES = {"mlflow": "run_name", "trackio": "name", "swanlab": "experiment_name"}
"""By tracker, the name of its argument for a run's own name; trackers that are not listed have none."""


def dotted(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each value in nested dicts as a pair of texts, such as ``("training.steps", "100")``.

    Args:
        values: the nested dicts.
        prefix: text in front of every name.
    """
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def prefixed(row: Row) -> dict[str, float]:
    """Return a training step's metrics under the names that trackers show: ``train/loss`` for ``loss``.

    Names of evaluations, which have a slash, stay as they are. Missing values and the step itself are left out.

    Args:
        row: ``step`` and the metrics by name; None for a missing value.
    """
    named = {name if "/" in name else f"train/{name}": value for name, value in row.items() if name != "step"}
    return {name: value for name, value in named.items() if value is not None}
