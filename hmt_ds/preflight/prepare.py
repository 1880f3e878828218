"""Check a recipe before training starts, report all problems at once, and load the data of the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig

from hmt_ds.backbones import (
    check_adapters,
    check_backbone,
    check_config_keys,
    check_memory,
    check_packing,
    check_weights,
    quantize_problems,
    read_config,
)
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import find_file
from hmt_ds.config.recipe import Recipe
from hmt_ds.data import RetrievalText, document_lengths
from hmt_ds.data.task_documents import TaskDocuments
from hmt_ds.parallel.deepspeed_config.fill import (
    DeepSpeedConfigError,
    EngineSettings,
    fill_ds_config,
    read_ds_config,
    stage_of,
)
from hmt_ds.parallel.deepspeed_config.lr_schedule import make_scheduler
from hmt_ds.parallel.deepspeed_config.optimizer import check_optimizer
from hmt_ds.preflight.compute_checks import check_compute
from hmt_ds.preflight.folder_checks import check_folders, check_output
from hmt_ds.preflight.pipeline_checks import check_pipeline
from hmt_ds.preflight.problems import Problems
from hmt_ds.preflight.read_data import Documents, ReadSource, read_data
from hmt_ds.preflight.recipe_checks import (
    check_curriculum,
    check_positions,
    check_training,
    retrieval_warnings,
    warm_up_warnings,
)
from hmt_ds.preflight.source_run import with_source_of_run


@dataclass(frozen=True)
class Prepared:
    """What a run needs besides its recipe: DeepSpeed's configuration and the documents, checked.

    Attributes:
        ds_config: DeepSpeed's configuration, with all values filled in.
        train: tokenized training documents; None if prepared without data, or if documents are generated.
        validation: tokenized held-out documents, cut to the part that an evaluation reads; None if the recipe has none.
        tokenizer: the tokenizer's number of tokens and a hash of its vocabulary; None if prepared without data.
        warnings: lines about settings that allow a run, but may not be intended.
        retrieval: tokenized sentences of generated documents; None unless the recipe has data.retrieval.
        sources: the data sources of the training documents, in the order of the documents; empty if they are generated.
        task_documents: generated documents of evaluation.tasks, by task and length.
    """

    ds_config: dict[str, Any]
    train: Dataset | None
    validation: Dataset | None
    tokenizer: str | None = None
    warnings: tuple[str, ...] = ()
    retrieval: RetrievalText | None = None
    sources: tuple[ReadSource, ...] = ()
    task_documents: tuple[TaskDocuments, ...] = ()


def prepare(recipe: Recipe, recipe_file: str | Path, *, writes_output: bool = True, with_data: bool = True) -> Prepared:
    """Check a recipe against the model, the data and this machine, and load its data.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe; paths in the recipe may be relative to its folder.
        writes_output: whether training.output will be written, so that it must not hold another run.
        with_data: whether to load documents and tokenizer; otherwise they need not exist.

    Raises:
        ConfigError: with a line for each problem.
    """
    recipe, unusable = with_source_of_run(recipe)
    problems = Problems(check_training(recipe) + check_folders(recipe) + unusable)
    if writes_output:
        problems += check_output(recipe)
    ds_config = problems.attempt(lambda: deepspeed_config(recipe, recipe_file), "deepspeed: ")
    keys, schedule, stage = recipe.optimizer, recipe.schedule, stage_of(ds_config or {})
    problems.attempt(lambda: check_optimizer(keys.name, keys.lr, keys.weight_decay, keys.params, stage))
    problems.attempt(lambda: make_scheduler(schedule.name, schedule.params, recipe.training.steps))
    model, warnings = recipe.model, warm_up_warnings(recipe)
    config = problems.attempt(lambda: read_config(model.source, trust_remote_code=model.trust_remote_code))
    if config is not None:
        warnings += check_model(recipe, config, stage, problems)
        if ds_config is not None:
            problems += check_compute(recipe, config, ds_config)
            problems += check_pipeline(recipe, config, ds_config)
    vocabulary = getattr(config, "vocab_size", None)
    documents = read_data(recipe, vocabulary, problems) if with_data else Documents()
    if documents and documents.train is not None:
        problems += check_curriculum(recipe, document_lengths(documents.train))
    warnings += documents.warnings if documents else ()
    if documents and documents.retrieval is not None:
        warnings += retrieval_warnings(recipe, documents.retrieval.question_tokens)
    if problems or ds_config is None or documents is None:
        raise ConfigError(problems)
    found = (documents.train, documents.validation, documents.tokenizer)
    return Prepared(
        ds_config, *found, tuple(warnings), documents.retrieval, documents.sources, documents.task_documents
    )


def check_model(recipe: Recipe, config: PreTrainedConfig, stage: int, problems: Problems) -> list[str]:
    """Check a recipe's backbone, memory and LoRA adapters.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.
        stage: ZeRO stage, 0 to 3.
        problems: list to which a line is appended for each problem.

    Returns:
        Warnings about the weights.
    """
    model, source = recipe.model, recipe.model.source
    if isinstance(source, dict):
        problems.attempt(lambda: check_config_keys(source))
    problems.attempt(lambda: check_backbone(config), "model: ")
    problems.attempt(lambda: check_memory(source, recipe.memory))
    warnings = problems.attempt(lambda: check_weights(source, trust_remote_code=model.trust_remote_code))
    problems += check_positions(recipe, config)
    if recipe.data.pack:
        problems.attempt(lambda: check_packing(config), "data.pack: ")
    if model.train == "lora":
        problems.attempt(lambda: check_adapters(config, model.lora, recipe.pipeline.stages), "model.lora: ")
    stages = recipe.pipeline.stages
    problems += quantize_problems(config, model.lora, train=model.train, stage=stage, stages=stages)
    return warnings or []


def deepspeed_config(recipe: Recipe, recipe_file: str | Path) -> dict[str, Any]:
    """Read a recipe's DeepSpeed file, and fill in the values that the recipe determines.

    Args:
        recipe: the recipe.
        recipe_file: path of the recipe; the DeepSpeed file may be relative to its folder.

    Raises:
        DeepSpeedConfigError: there is no such file, or it contradicts the recipe.
    """
    file = find_file(recipe.deepspeed, recipe_file)
    if file is None:
        raise DeepSpeedConfigError(
            f"{recipe.deepspeed}: no such file: name a DeepSpeed configuration, such as ds_configs/zero1.json"
        )
    training, keys = recipe.training, recipe.optimizer
    settings = EngineSettings(
        precision=recipe.model.precision,
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
        gradient_clipping=training.gradient_clipping,
        optimizer=keys.name,
        optimizer_params={"lr": keys.lr, "weight_decay": keys.weight_decay, **keys.params},
    )
    return fill_ds_config(read_ds_config(file), settings)
