"""Which checkpoint a run ends with: one that is there already is not written again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hmt_ds.checkpoint import CheckpointError, RunPosition
from hmt_ds.distributed.stopping import Stopped
from hmt_ds.training import trainer as module
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
    """What a run says that is told to stop in the evaluation after step 4."""
    one: Any = Trainer.__new__(Trainer)
    one.recipe = SimpleNamespace(
        training=SimpleNamespace(steps=8, max_bad_steps=5),
        checkpoint=SimpleNamespace(every=every),
        evaluation=SimpleNamespace(every=4),
    )
    output = SimpleNamespace(fresh_tokens=1, flags=(0, 0))
    one.saver, one.position, one.intact, one.logs, one.watchdog = saver, RunPosition(), None, None, None
    one.signals = SimpleNamespace(told=0)
    one.executor = SimpleNamespace(train_batch=lambda windows, flags: output)
    one.progress = SimpleNamespace(say=lambda text: None, close=lambda: None)
    one.bad_steps = SimpleNamespace(count=lambda output, windows: None, in_a_row=0)
    monkeypatch.setattr(one, "steps", lambda: ((n, [SimpleNamespace(position={})], 0.0) for n in range(1, 9)))
    monkeypatch.setattr(one, "report", lambda output, seconds: None)
    monkeypatch.setattr(module, "as_window", lambda batch: batch)
    one.rank_times = module.RankTimes.__new__(module.RankTimes)
    monkeypatch.setattr(module.RankTimes, "of_a_step", lambda self, loading: pytest.MonkeyPatch.context())
    monkeypatch.setattr(module.RankTimes, "look", lambda self: None)

    def evaluate(step: int) -> None:
        raise Stopped("stopped in the evaluation")

    one.held_out = SimpleNamespace(evaluate=evaluate)
    with pytest.raises(Stopped) as said:
        one.take_steps()
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
    assert said.startswith("stopped after step 4; checkpoint checkpoints/step_000004; go on with")
