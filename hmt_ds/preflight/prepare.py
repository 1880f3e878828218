"""Everything that can be wrong with a recipe, found before anything starts and said at once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset

from hmt_ds.backbones import (
    BackboneError,
    check_adapters,
    check_backbone,
    check_config_keys,
    check_memory,
    check_weights,
    family_of,
    read_config,
)
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import find_file
from hmt_ds.config.recipe import Recipe, Source
from hmt_ds.config.value_checks import why_no_folder
from hmt_ds.data import (
    DataError,
    check_vocabulary,
    describe_tokenizer,
    load_documents,
    load_tokenizer,
    tokenize_documents,
)
from hmt_ds.evaluation.perplexity import segments_needed
from hmt_ds.parallel.deepspeed_config.fill import (
    DeepSpeedConfigError,
    EngineSettings,
    fill_ds_config,
    read_ds_config,
    stage_of,
)
from hmt_ds.parallel.deepspeed_config.lr_schedule import ScheduleError, make_scheduler
from hmt_ds.parallel.deepspeed_config.optimizer import OptimizerError, check_optimizer
from hmt_ds.preflight.compute_checks import check_compute, check_pipeline

T = TypeVar("T")
MISTAKES = (BackboneError, DataError, DeepSpeedConfigError, OptimizerError, ScheduleError)


@dataclass(frozen=True)
class Prepared:
    """What the checks have read and found in order.

    Attributes:
        ds_config: DeepSpeed's configuration, filled.
        train, validation: tokenised documents. ``train`` is None where no data were wanted.
        tokenizer: what it is by its content, for people.
        warnings: what a run can start with, but should not without a word.
    """

    ds_config: dict[str, Any]
    train: Dataset | None
    validation: Dataset | None
    tokenizer: str | None = None
    warnings: tuple[str, ...] = ()


class Problems(list[str]):
    """Collects what is wrong, so that all of it can be said at once."""

    def attempt(self, action: Callable[[], T], prefix: str = "") -> T | None:
        """The action's result, or None with its problems noted."""
        try:
            return action()
        except MISTAKES as error:
            self.extend(prefix + line for line in str(error).splitlines())
            return None


def prepare(recipe: Recipe, recipe_file: str | Path, *, new_run: bool = True, with_data: bool = True) -> Prepared:
    """Check a recipe against the world, and read its data.

    Args:
        recipe_file: where the recipe is; files may be named relative to it.
        new_run: whether the output folder will be written.
        with_data: whether data and tokenizer are wanted; else nobody looks for them.

    Raises:
        ConfigError: with all problems.
    """
    problems = Problems(check_training(recipe) + check_folders(recipe))
    if new_run:
        problems += check_output(recipe)
    ds_config = problems.attempt(lambda: deepspeed_config(recipe, recipe_file), "deepspeed: ")
    wanted, stage = recipe.optimizer, stage_of(ds_config or {})
    problems.attempt(lambda: check_optimizer(wanted.name, wanted.lr, wanted.weight_decay, wanted.params, stage))
    problems.attempt(lambda: make_scheduler(recipe.schedule.name, recipe.schedule.params, recipe.training.steps))
    model = recipe.model
    warnings: list[str] | None = None
    config = problems.attempt(lambda: read_config(model.source, trust_remote_code=model.trust_remote_code))
    if config is not None:
        source = model.source
        if isinstance(source, dict):
            problems.attempt(lambda: check_config_keys(source))
        problems.attempt(lambda: check_backbone(config), "model: ")
        problems.attempt(lambda: check_memory(model.source, recipe.memory))
        warnings = problems.attempt(lambda: check_weights(model.source, trust_remote_code=model.trust_remote_code))
        problems += check_positions(recipe, config)
        if ds_config is not None:
            problems += check_compute(recipe, config, ds_config)
            problems += check_pipeline(recipe, config, ds_config)
        if model.train == "lora":
            problems.attempt(
                lambda: check_adapters(config, model.lora, recipe.pipeline.stages),
                "model.lora: ",
            )
    vocabulary = getattr(config, "vocab_size", None)
    datasets = read_data(recipe, vocabulary, problems) if with_data else (None, None, None)
    if problems or ds_config is None or datasets is None:
        raise ConfigError(problems)
    train, validation, tokenizer = datasets
    return Prepared(ds_config, train, validation, tokenizer, tuple(warnings or ()))


def check_training(recipe: Recipe) -> list[str]:
    """Settings that contradict each other or this machine."""
    problems = []
    memory = recipe.memory
    if memory.sensory_tokens > memory.segment_length:
        problems.append(
            f"memory.sensory_tokens is {memory.sensory_tokens}, more than a segment has ({memory.segment_length}): "
            "take at most memory.segment_length"
        )
    if recipe.compute.recompute == "reentrant":
        problems.append(
            "compute.recompute: reentrant checkpointing fails at ZeRO-2 and gives wrong gradients at ZeRO-3: "
            "use segment"
        )
    if recipe.model.precision == "fp16" and not torch.cuda.is_available():
        problems.append("model.precision: fp16 needs a GPU, and there is none here: use bf16 or fp32")
    read = recipe.evaluation.segments_read
    if read != sorted(set(read)) or not read or read[0] < 0:
        problems.append(f"evaluation.segments_read is {read}: must be ascending numbers of segments")
    return problems


def check_folders(recipe: Recipe) -> list[str]:
    """Folders that are to be written into must not be files, nor below one."""
    named = {"training.output": recipe.training.output, "data.cache_dir": recipe.data.cache_dir}
    return [f"{key}: {reason}" for key, path in named.items() if (reason := why_no_folder(Path(path)))]


def check_output(recipe: Recipe) -> list[str]:
    """A folder that holds another run is never written over."""
    folder = Path(recipe.training.output)
    traces = ("recipe.yaml", "metrics.jsonl", "checkpoints")  # an evaluation of the starting weights may be there
    if recipe.checkpoint.resume == "never" and any((folder / name).exists() for name in traces):
        return [
            f"training.output: {folder} holds a run already: name another folder, or go on with "
            "--checkpoint.resume auto"
        ]
    return []


def check_positions(recipe: Recipe, config: Any) -> list[str]:
    """Prompts, sensory tokens and segment together must fit into the backbone's positions."""
    memory = recipe.memory
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or memory.positions <= limit:
        return []
    kind = "has" if family_of(config).hard_positions else "was made for"
    prompts = memory.positions - memory.sensory_tokens - memory.segment_length
    return [
        f"memory: {memory.segment_length} fresh + {memory.sensory_tokens} sensory + {prompts} prompt tokens are "
        f"{memory.positions} positions, the backbone {kind} {limit}: shorten memory.segment_length"
    ]


def deepspeed_config(recipe: Recipe, recipe_file: str | Path) -> dict[str, Any]:
    """The recipe's DeepSpeed file, filled in."""
    file = find_file(recipe.deepspeed, recipe_file)
    if file is None:
        raise DeepSpeedConfigError(f"{recipe.deepspeed}: no such file")
    training, wanted = recipe.training, recipe.optimizer
    params = {"lr": wanted.lr, "weight_decay": wanted.weight_decay, **wanted.params}
    settings = EngineSettings(
        precision=recipe.model.precision,
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
        gradient_clipping=training.gradient_clipping,
        optimizer=wanted.name,
        optimizer_params=params,
    )
    return fill_ds_config(read_ds_config(file), settings)


def read_data(recipe: Recipe, vocab_size: int | None, problems: Problems) -> tuple[Dataset, Dataset | None, str] | None:
    """Tokenised training and held-out documents, and by what they were tokenised."""
    name = recipe.model.tokenizer or recipe.model.source
    if not isinstance(name, str):
        problems.append("model.tokenizer: missing; model.source is a configuration, which has none")
        return None
    tokenizer = problems.attempt(lambda: load_tokenizer(name), "model.tokenizer: ")
    if tokenizer is not None and vocab_size is not None:
        problems.attempt(lambda: check_vocabulary(tokenizer, vocab_size), "model.tokenizer: ")

    def read(source: Source) -> Dataset:
        documents = load_documents(**source.model_dump())
        return tokenize_documents(documents, tokenizer, cache_dir=Path(recipe.data.cache_dir))

    data = recipe.data
    if tokenizer is None or problems:  # nothing is tokenised for a run that cannot start, but its files are looked at
        problems.attempt(lambda: load_documents(**data.train.model_dump()), "data.train: ")
        if data.validation:
            validation_source = data.validation
            problems.attempt(lambda: load_documents(**validation_source.model_dump()), "data.validation: ")
        return None
    train = problems.attempt(lambda: read(data.train), "data.train: ")
    validation = None
    if data.validation:
        held_out = data.validation
        validation = problems.attempt(lambda: shorten(read(held_out), recipe), "data.validation: ")
    return None if train is None else (train, validation, describe_tokenizer(tokenizer))


def shorten(documents: Dataset, recipe: Recipe) -> Dataset:
    """As much of the held-out documents as the evaluation reads."""
    documents = documents.select(range(min(len(documents), recipe.evaluation.documents or len(documents))))
    tokens = segments_needed(recipe.evaluation.segments_read) * recipe.memory.segment_length

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": row["input_ids"][:tokens], "length": min(row["length"], tokens)}

    return documents.map(cut, keep_in_memory=True)
