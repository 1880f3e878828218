"""The checkpoint that a run ends with: one that exists already is not written again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hmt_ds.checkpoint import CheckpointError, RunPosition
from hmt_ds.distributed.stopping import Stopped
from hmt_ds.training import trainer
from hmt_ds.training.checkpoints import RunCheckpoints
from hmt_ds.training.trainer import Trainer


class FakeSaver:
    """Writes nothing; the first saves may fail."""

    def __init__(self, background: bool, failures: int):
        self.background, self.failures = background, failures
        self.begun: list[int] = []
        self.target: Path | None = None

    def begin(self, executor: Any, position: RunPosition) -> None:
        assert self.target is None
        self.begun.append(position.step)
        self.target = Path(f"checkpoints/step_{position.step:06d}")

    def written(self) -> int:
        return 0

    def finish(self) -> Path | None:
        target, self.target = self.target, None
        if target and self.failures:
            self.failures -= 1
            raise CheckpointError(f"{target} was not written")
        return target


def stopped_in_evaluation(monkeypatch: pytest.MonkeyPatch, saver: FakeSaver, every: int) -> str:
    """The message of a run that is told to stop in the evaluation after step 4."""
    checkpoints: Any = RunCheckpoints.__new__(RunCheckpoints)
    checkpoints.saver, checkpoints.executor, checkpoints.newest = saver, None, None
    run: Any = Trainer.__new__(Trainer)
    run.recipe = SimpleNamespace(
        training=SimpleNamespace(steps=8, max_bad_steps=5),
        checkpoint=SimpleNamespace(every=every),
        evaluation=SimpleNamespace(every=4),
    )
    run.checkpoints, run.bad_steps = checkpoints, SimpleNamespace(consecutive=0)
    run.log = SimpleNamespace(close=lambda: None, evaluated=lambda *_: None)
    run.history = checkpoints.history = SimpleNamespace(write=lambda *_, **__: None)

    def training_step(step: int, windows: Any, loading_seconds: float) -> Any:
        run.position = RunPosition(step)
        return SimpleNamespace(flags=(0, checkpoints.written()))

    def evaluate(step: int, *, in_passing: bool) -> None:
        assert in_passing
        raise Stopped("stopped in the evaluation")

    monkeypatch.setattr(run, "steps", lambda: ((n, [], 0.0) for n in range(1, 9)))
    monkeypatch.setattr(trainer, "has_new_shift", lambda recipe: False)
    monkeypatch.setattr(run, "training_step", training_step)
    run.evaluations = [SimpleNamespace(evaluate=evaluate, every=4)]
    with pytest.raises(Stopped) as said:
        run.fit()
    return str(said.value)


@pytest.mark.parametrize(
    ("background", "failures", "every", "begun"),
    [
        (False, 0, 4, [4]),  # it is there
        (True, 0, 4, [4]),  # it is being written
        (False, 1, 4, [4, 4]),  # it could not be written
        (True, 1, 4, [4, 4]),
        (False, 0, 3, [3, 4]),  # there is another step's
    ],
)
def test_a_stop_right_behind_a_save(monkeypatch, background, failures, every, begun):
    saver = FakeSaver(background, failures)
    said = stopped_in_evaluation(monkeypatch, saver, every)
    assert saver.begun == begun
    assert said.startswith("stopped after step 4; checkpoint checkpoints/step_000004; reason: a stop signal")
