"""Logits and continuation of a document by the trainer's own model, from a run's newest checkpoint.

run_ranks starts this file; it does not use hmt_ds.conversion.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hmt_ds.checkpoint import load_weights, newest_intact
from hmt_ds.config.load import load_recipe
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.distributed.process_group import end_process, join
from hmt_ds.memory import MemoryState, read_window, split_document
from hmt_ds.preflight.prepare import prepare
from hmt_ds.training.build import build_executor


def model_of(task: dict[str, Any]) -> Any:
    """The run's model in an engine at stage 0, unsharded; without a checkpoint, with initial weights."""
    run = Path(task["run"])
    file = run / "recipe.yaml" if run.is_dir() else run
    recipe = load_recipe(file, task.get("overrides", []))
    executor = build_executor(
        recipe, prepare(recipe, file, writes_output=False, with_data=False), join(timeout_minutes=2)
    )
    if run.is_dir():
        checkpoint = newest_intact(run / "checkpoints", print)
        assert checkpoint is not None
        load_weights(executor, checkpoint)
    return executor.engine.module.eval()


@torch.no_grad()
def be_a_rank(task: dict[str, Any], result: Path) -> None:
    """Compute the logits of the ids and continue them."""
    model = model_of(task)
    ids = load_file(task["ids"])["input_ids"]
    settings = model.settings
    state = MemoryState.empty(
        len(ids),
        settings.memory_tokens,
        model.backbone.dim,
        settings.sensory_tokens,
        dtype=torch.float32,
        device=ids.device,
    )
    window = split_document(ids, settings.segment_length)
    logits = [o.logits for o, _ in read_window(model, settings, window, state, with_logits=True)]
    found = {
        "logits": torch.cat(logits, dim=1)[:, : ids.shape[1]],
        "generated": HMTForCausalLM.around(model).generate(ids, max_new_tokens=40)[:, ids.shape[1] :],
    }
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, task["out"])
    result.write_text("null")
    end_process(0)


if __name__ == "__main__":
    be_a_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
