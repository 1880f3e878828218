"""A model that was built to read only, against the executor that trained it: losses, and what each holds in memory.

As a rank this file is started by run_ranks.
"""

import gc
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from ranks import run_ranks

from hmt_ds.checkpoint import Retention, RunPosition, Saver, load_weights
from hmt_ds.config.load import load_recipe
from hmt_ds.distributed.deepspeed_internals import has_optimizer, is_replicated, weight_shard
from hmt_ds.distributed.process_group import all_gather_object, end_process, join, rank
from hmt_ds.evaluation.read_documents import document_losses
from hmt_ds.parallel.protocols import Reader
from hmt_ds.preflight.prepare import prepare
from hmt_ds.training.build import build_executor, build_reader, training_loader
from hmt_ds.training.evaluation_in_run import as_window
from hmt_ds.training.validation import Validation


def tensor_bytes() -> int:
    """Bytes of all tensors of this process, each storage once."""
    gc.collect()  # DeepSpeed's engines hold themselves in cycles
    tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and thing.layout == torch.strided]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of this rank's weights: whole ones, shards, and what ZeRO-3 keeps gathered besides its shard."""
    shards = [shard for weight in model.parameters() if (shard := weight_shard(weight)) is not None]
    return sum(part.numel() * part.element_size() for part in [*shards, *model.parameters()])


def compare(recipe_file: str, overrides: list[str], folder: Path, device: torch.device) -> dict[str, Any]:
    """Some steps of training, saved; the losses that the executor finds, and a reader before and after it loads."""
    recipe = load_recipe(recipe_file, overrides)
    prepared = prepare(recipe, recipe_file, writes_output=False)
    before = tensor_bytes()
    executor = build_executor(recipe, prepared, device)
    for batch in islice(iter(training_loader(recipe, prepared)), 3):  # the first two have a learning rate of 0
        executor.train_batch([as_window(batch)])
    saver = Saver(folder, {}, Retention())
    saver.begin(executor, RunPosition(7))
    checkpoint = saver.finish()
    assert checkpoint is not None

    def losses(reader: Reader) -> dict[str, Any]:
        validation = Validation(recipe, prepared, reader, lambda: None)
        assert prepared.validation is not None
        documents = len(prepared.validation)
        found = document_losses(reader, validation.windows(prepared.validation), documents, 4, validation.instead)
        return {name: values.tolist() for name, values in found.losses.items()}

    expected, executor_bytes = losses(executor), tensor_bytes() - before
    executor.engine.destroy()
    del executor, saver
    before = tensor_bytes()
    reader = build_reader(recipe, prepared, device)
    untrained, step = losses(reader), load_weights(reader, checkpoint).step
    found, weights = losses(reader), weight_bytes(reader.engine.module)
    reader_bytes = tensor_bytes() - before
    assert step == 7 and not has_optimizer(reader.engine)
    assert not any(is_replicated(weight) for weight in reader.engine.module.parameters())
    reader.engine.destroy()
    return {
        "expected": expected,
        "found": found,
        "untrained": untrained,
        "weights": all_gather_object(weights),
        "reader": all_gather_object(reader_bytes),
        "executor": all_gather_object(executor_bytes),
    }


def be_a_rank(task: dict[str, Any], result: Path) -> None:
    """Compare one case after the other in one process group."""
    device = join(timeout_minutes=2)
    found = [
        compare(task["recipe"], overrides, Path(task["folder"]) / f"checkpoints_{number}", device)
        for number, overrides in enumerate(task["cases"])
    ]
    if rank() == 0:
        result.write_text(json.dumps(found))
    end_process(0)


def run_cases(recipe: Path, cases: list[list[str]], **options: Any) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The overrides of each case, and what became of it."""
    task = {"recipe": str(recipe), "cases": cases, "folder": str(recipe.parent)}
    yield from zip(cases, run_ranks("reading.py", task, **options), strict=True)


if __name__ == "__main__":
    be_a_rank(json.loads(sys.argv[1]), Path(sys.argv[2]))
