"""The settings that must be equal in a run and in a checkpoint that it resumes from."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from hmt_ds.config.recipe import Recipe
from hmt_ds.data import document_lengths
from hmt_ds.data.describe import hash_of_order
from hmt_ds.distributed.process_group import world_size
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.preflight.read_data import ReadSource


def identity(recipe: Recipe, prepared: Prepared) -> dict[str, object]:
    """Return the settings that must be equal in a run and in a checkpoint that it resumes from: JSON values by recipe
    key.

    Args:
        recipe: the checked recipe.
        prepared: results of the preflight checks, with the hash of the tokenizer.
    """
    model = recipe.model
    found: dict[str, object] = {
        "model.source": model.source if isinstance(model.source, dict) else Path(model.source).name,
        "model.train": model.train,
        "model.tokenizer": prepared.tokenizer,
        "training.seed": recipe.training.seed,
        "training.steps": recipe.training.steps,  # may differ, but then the learning rate may jump
        "training.batch_size x ranks": recipe.training.batch_size * (world_size() // recipe.pipeline.stages),
    }
    found |= {
        f"optimizer.{key}": value for key, value in recipe.optimizer.model_dump(include={"name", "params"}).items()
    }
    found |= {f"schedule.{key}": value for key, value in recipe.schedule.model_dump().items()}
    found |= {f"memory.{key}": value for key, value in asdict(recipe.memory).items()}
    if model.train == "lora":
        # checkpoints that are older than quantize do not name it
        lora = {key: value for key, value in asdict(model.lora).items() if (key, value) != ("quantize", "none")}
        found |= {f"model.lora.{key}": value for key, value in lora.items()}
    if prepared.train is not None:
        lengths = document_lengths(prepared.train)
        found["data.train"] = f"{len(lengths):,} documents, {int(lengths.sum()):,} tokens"
        found["data.train, hash of the lengths in order"] = hash_of_order(lengths)
    if len(prepared.sources) > 1:
        shares = [f"{one.documents:,} with weight {one.source.weight:g}" for one in prepared.sources]
        found["data.train, shares"] = f"{' + '.join(shares)}, by {recipe.data.mix_by}"
    if any(one.source.row_format != "text" for one in prepared.sources):
        formats = [f"{one.source.row_format} (prompts {one.source.prompt_weight:g})" for one in prepared.sources]
        found["data.train, formats and weights in the loss"] = " + ".join(formats)
    if any(one.found.chat_template for one in prepared.sources):
        found["data.train, hash of the chat templates"] = " + ".join(map(hash_of_template, prepared.sources))
    if prepared.sources:
        found["data.pack"] = recipe.data.pack
    if recipe.data.stream:
        found["data.stream"] = recipe.data.stream
    if settings := recipe.data.retrieval:
        found |= {f"data.retrieval.{key}": value for key, value in asdict(settings).items()}
    return found


def hash_of_template(source: ReadSource) -> str:
    """Return a hash of the chat template that a data source's conversations are rendered with; "none" without
    conversations.

    Args:
        source: the data source.
    """
    template = source.found.chat_template
    return hashlib.sha256(template.encode()).hexdigest()[:12] if template else "none"
