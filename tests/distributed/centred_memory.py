"""Centre the memories on every rank, take a step, and compare the weights before and after it with one process.

run_ranks starts this file on every rank, with the names of some cases.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import pipeline_gradients
import torch
import zero_cases
import zero_gradients
from tiny_runs import get_weights, plain_model, set_weights
from torch import Tensor
from zero_gradients import CLIPPING, OPTIMIZER, mean_losses

from hmt_ds.distributed.process_group import all_gather_object, end_process, join, rank
from hmt_ds.memory import HMT, MemoryState, Window, read_window
from hmt_ds.training.centre_memory import centre_memory

HMT_MODE = {"interface": "adapted", "recalled": 2}
RMT_MODE = {"interface": "adapted", "mode": "rmt"}
CASES: dict[str, Any] = {
    "zero0": zero_cases.Case("zero0", **HMT_MODE),
    "zero0-step": zero_cases.Case("zero0", "frozen", reduction="step", **RMT_MODE),
    "zero1-step": zero_cases.Case("zero1", reduction="step", **HMT_MODE),
    "zero2_offload": zero_cases.Case("zero2_offload", "lora", **RMT_MODE),
    "zero3": zero_cases.Case("zero3", **HMT_MODE),
    "zero3-step": zero_cases.Case("zero3", reduction="step", **RMT_MODE),
    "zero3_offload": zero_cases.Case("zero3_offload", reduction="step", **RMT_MODE),
    "zero0-bf16": zero_cases.Case("zero0", precision="bf16", reduction="step", **HMT_MODE),
    "zero1-bf16": zero_cases.Case("zero1", precision="bf16", reduction="step", **RMT_MODE),
    "zero3-bf16": zero_cases.Case("zero3", precision="bf16", **HMT_MODE),
    "pipeline-hmt": pipeline_gradients.Case(2, 1, 4, 2, **HMT_MODE),
    "pipeline-rmt": pipeline_gradients.Case(2, 1, 4, 4, train="frozen", **RMT_MODE),
}


def in_one_process(case: Any, module: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """The centred weights, those after a step, and its loss; with torch alone, in float64."""
    steps = module.steps(case, 0, 1)
    if module is pipeline_gradients:
        model = module.start_model(case).double()
    else:
        model = plain_model(case.train, memory=case.memory)
        set_weights(model, module.start_weights(case))
        model.double()
    rows, settings = len(steps[0][0].starts), case.memory
    state = MemoryState.empty(rows, 2, 32, settings.sensory_tokens, dtype=torch.float64, device=torch.device("cpu"))
    with torch.no_grad():
        model.memory_embedding.shift -= model.memory_embedding.scale * mean_memory(model, steps, state)
    centred = get_weights(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **OPTIMIZER)
    loss, _, _ = mean_losses(model, steps[0], state, 1)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, CLIPPING)
    optimizer.step()
    return centred, get_weights(model), float(loss.detach())


def mean_memory(model: HMT, steps: list[list[Window]], state: MemoryState) -> Tensor:
    """The mean over all memories of two steps, each divided by its root mean square, ``[d]``."""
    found = []
    for window in [window for step in steps[:2] for window in step]:
        for n, (output, after) in enumerate(read_window(model, model.settings, window, state)):
            found.append(output.memory[window.lengths[:, n] > 0].flatten(0, 1))
            state = after
    memories = torch.cat(found)
    return (memories / (memories.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()).mean(dim=0)


def whole_weights(executor: Any) -> dict[str, Tensor]:
    """The weights of all stages, in float32."""
    own = {name: weight.float() for name, weight in get_weights(executor.engine.module).items()}
    stages = all_gather_object(own) if executor.stages > 1 else [own]
    return {name: weight for stage in stages for name, weight in stage.items() if name != "stand_in"}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative distance of any weight."""
    assert found.keys() == expected.keys()
    return max(float((found[n] - w).norm() / w.norm()) for n, w in expected.items())


def compare(case: Any, device: torch.device) -> dict[str, Any]:
    """What centring and one step change, against one process."""
    module = pipeline_gradients if isinstance(case, pipeline_gradients.Case) else zero_gradients
    executor = module.make_executor(case, device)
    steps, before = module.steps(case, executor.data_rank, executor.data_ranks), whole_weights(executor)
    random = torch.get_rng_state()
    centre_memory(executor, [window for step in steps[:2] for window in step])
    carried, drawn = executor.state is not None, not torch.equal(random, torch.get_rng_state())
    centred = whole_weights(executor)
    loss = executor.train_batch(steps[0]).loss
    stepped = whole_weights(executor)
    executor.engine.destroy()
    expected, expected_stepped, expected_loss = in_one_process(case, module)
    shift = "memory_embedding.shift"
    return {
        "shift": float((centred[shift] - expected[shift]).norm() / expected[shift].norm()),
        "moved": float((centred[shift] - before[shift]).norm() / before[shift].norm()),
        "others": [n for n in before if n != shift and not torch.equal(before[n], centred[n])],
        "stepped": furthest(stepped, expected_stepped),
        "loss": abs(loss / expected_loss - 1),
        "carried": carried,
        "drawn": drawn,
    }


if __name__ == "__main__":
    device, rows = join(timeout_minutes=2), {}
    for name in json.loads(sys.argv[1]):
        rows[name] = compare(CASES[name], device)
        gc.collect()
    if rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(rows))
    end_process(0)
