"""Effects of a non-finite step on the state and on the next step, on real ranks. Run by run_ranks.

Two runs are compared: one reads a good window, a window with a poisoned token, and a good window; the other reads only
the two good ones. All windows begin with new documents, so only a trace of the bad step can make a difference.
"""

import gc
import json
import math
import sys
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pipeline_gradients
import torch
import zero_cases
import zero_gradients
from ranks import run_ranks
from tiny_runs import DEPTH, VOCABULARY, get_weights, windows
from torch import Tensor

from hmt_ds.backbones import CausalLM
from hmt_ds.checkpoint.fragments import fragments, optimizer_scalars
from hmt_ds.distributed.process_group import all_gather_object, end_process, join, rank, world_size
from hmt_ds.memory import Window
from hmt_ds.parallel.protocols import Executor, StepOutput

POISON = VOCABULARY - 1
embed_rightly = CausalLM.embed
ROW, SEGMENT = 1, 1  # position of the poisoned token, on the last data rank


@dataclass(frozen=True)
class Case:
    """How the ranks work together, and which values the poisoned token makes non-finite.

    Attributes:
        config: a file of ds_configs, or ``pipeline``.
        spoils: ``loss`` and everything computed from it; or ``gradient``, that of the embeddings only.
    """

    config: str
    precision: str = "fp32"
    reduction: str = "step"
    spoils: str = "loss"

    def __str__(self) -> str:
        return "-".join(astuple(self))


class Spoiled(torch.autograd.Function):
    """The identity, with a gradient that is not finite in some places."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        return embeddings.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.masked_fill(ctx.saved_tensors[0], math.inf), None


def poison(spoils: str) -> None:
    """Patch the model so that the poisoned token has its effect."""

    def embed(backbone: CausalLM, ids: Tensor) -> Tensor:
        found, where = embed_rightly(backbone, ids), (ids == POISON)[:, :, None]
        return Spoiled.apply(found, where) if spoils == "gradient" else found.masked_fill(where, math.nan)

    CausalLM.embed = embed


def three_windows(executor: Executor) -> list[Window]:
    """A good, a bad and a good window; each row begins with a new document."""
    base = windows(executor.data_rank, executor.data_ranks)[0]
    starts = base.starts.clone()
    starts[:, 0] = True
    found = [replace(base, input_ids=(base.input_ids + n) % POISON, starts=starts) for n in range(3)]
    if executor.data_rank == executor.data_ranks - 1:
        found[1].input_ids[ROW, SEGMENT, 0] = POISON
    return found


def make_executor(case: Case, device: torch.device) -> Executor:
    """The executor of a case, as in the gradient tests."""
    if case.config == "pipeline":
        pipelines = world_size() // 2
        return pipeline_gradients.make_executor(
            pipeline_gradients.Case(2, pipelines, DEPTH, 2, precision=case.precision), device
        )
    return zero_gradients.make_executor(
        zero_cases.Case(case.config, precision=case.precision, reduction=case.reduction), device
    )


class Schedule:
    """Counts its steps."""

    steps = 0

    def step(self) -> None:
        self.steps += 1

    def get_last_lr(self) -> list[float]:
        return [0.0]


def trace(executor: Executor) -> dict[str, Any]:
    """Everything that a step changes on this rank."""
    own = fragments(executor.engine, rank=executor.data_rank, world_size=executor.data_ranks, to_write=False)
    found = {f"{f.name}@{f.start} {key}": t.clone() for f in own for key, t in f.tensors.items()}
    found |= get_weights(executor.engine.module)
    return found | {"scalars": optimizer_scalars(executor.engine), "schedule": executor.engine.lr_scheduler.steps}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the values that differ in any bit on any rank."""
    assert one.keys() == other.keys()
    own = [k for k, v in one.items() if not (torch.equal(v, other[k]) if torch.is_tensor(v) else v == other[k])]
    return sorted({name for names in all_gather_object(own) for name in names})


def run(case: Case, device: torch.device, chosen: list[int]) -> tuple[list[dict[str, Any]], list[StepOutput], Any]:
    """Train on some of the windows; return the state and the output of each step."""
    executor = make_executor(case, device)
    executor.engine.lr_scheduler = Schedule()
    every = three_windows(executor)
    traces, said = [], []
    for n in chosen:
        said.append(executor.train_batch([every[n]]))
        traces.append(trace(executor))
    assert executor.state is not None
    bad_memory = not bool(executor.state.memories.isfinite().all())
    executor.engine.destroy()
    return traces, said, bad_memory


def compare(case: Case, device: torch.device) -> dict[str, Any]:
    """The results of a case that the test checks."""
    poison(case.spoils)
    with_bad, said, bad_memory = run(case, device, [0, 1, 2])
    without, good, _ = run(case, device, [0, 2])
    moved = differences(with_bad[0], with_bad[2])
    return {
        "case": astuple(case),
        "skipped": all_gather_object([output.skipped for output in said]),
        "bad": all_gather_object([output.bad for output in said]),
        "reset_rows": [output.reset_rows for output in said],
        "finite": all_gather_object(said[1].finite.tolist()),
        "others_finite": all(all_gather_object(all(bool(o.finite.all()) for o in (said[0], said[2])))),
        "losses": [output.loss for output in said],
        "good_losses": [output.loss for output in good],
        "changed_by_the_bad_step": differences(with_bad[0], with_bad[1]),
        "changed_in_the_end": differences(with_bad[2], without[1]),
        "moved": len(moved),
        "bad_memory": any(all_gather_object(bad_memory)),
    }


def be_a_rank(cases: list[Case], result: Path) -> None:
    """Run cases one after the other in one process group."""
    device = join(timeout_minutes=2)
    rows = []
    for case in cases:
        rows.append(compare(case, device))
        gc.collect()
    if rank() == 0:
        result.write_text(json.dumps(rows))
    end_process(0)


def run_cases(cases: list[Case], ranks: int = 2) -> list[dict[str, Any]]:
    """The results of some cases."""
    return run_ranks("bad_steps.py", [astuple(case) for case in cases], ranks=ranks, timeout=300)


if __name__ == "__main__":
    be_a_rank([Case(*values) for values in json.loads(sys.argv[1])], Path(sys.argv[2]))
