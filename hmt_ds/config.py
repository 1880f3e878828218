"""The recipe: one typed YAML file. All problems of a recipe are reported at once, before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hmt_ds.memory.settings import Mode, RecallScale

PROJECT = Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
    """What is wrong with a recipe: one line per problem."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, and a field's docstring is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Lora(Section):
    """Low-rank adapters, where model.train is lora."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"
    """Names of linear layers, or all-linear for all but the head."""


class Model(Section):
    """The backbone."""

    source: str | dict[str, Any]
    """A Hugging Face folder or hub name; or a configuration with model_type, for random weights."""
    tokenizer: str | None = None
    """A Hugging Face folder or hub name, or a sentencepiece .model file. Default: where the model is."""
    train: Literal["whole", "frozen", "lora"] = "whole"
    """What of the backbone is trained; the memory modules always are."""
    lora: Lora = Lora()
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    trust_remote_code: bool = False
    """Let a model's folder run code of its own."""


class Memory(Section):
    """The memory around the backbone (hmt_ds/memory)."""

    segment_length: int = Field(ge=1)
    """L: fresh tokens per segment, sensory tokens and prompts not counted."""
    mode: Mode = "hmt"
    """hmt: with recall; rmt: recurrence alone; backbone: no memory."""
    sensory_tokens: int = Field(32, ge=0)
    """k: tokens of the previous segment that are read again."""
    memory_tokens: int = Field(1, ge=1)
    """m: embeddings per memory."""
    cached_memories: int = Field(300, ge=1)
    """N: how many of the newest memories the recall sees."""
    summary_fraction: float = Field(0.5, gt=0, le=1)
    """The share of a segment that its summary reads."""
    recall_dim: int | None = Field(None, ge=1)
    """Width of the recall's projections. Default: the embedding width."""
    recall_scale: RecallScale = "paper"
    """reference only for checkpoints that HMT-pytorch trained at width 4096 or more."""


class Source(Section):
    """Documents."""

    source: str
    """A file or folder of text, JSONL or Parquet, a saved data set, or a name on the hub."""
    text_field: str = "text"
    split: str = "train"
    name: str | None = None
    """The configuration of a data set on the hub."""
    separator: str | None = None
    """For text files: a regular expression; a line that matches it begins a new document."""


class Data(Section):
    """What is read."""

    train: Source
    validation: Source | None = None
    """Held-out documents, for evaluation."""
    cache_dir: str = "runs/cache"
    """Where tokenised documents are kept."""
    workers: int = Field(0, ge=0)
    """Loader processes per rank. The order of the data does not depend on it."""


class Training(Section):
    """The loop."""

    output: str
    """Folder of the run."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    bptt_depth: int = Field(8, ge=1)
    """Segments that are backpropagated through."""
    batch_size: int = Field(1, ge=1)
    """Documents that each rank reads side by side."""
    gradient_accumulation: int = Field(1, ge=1)
    """Windows per optimizer step."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 for none."""
    checkpointing: Literal["segment", "reentrant"] = "segment"
    """What is recomputed in the backward pass: a segment. (Reentrant checkpointing is refused.)"""
    seed: int = 0
    pipeline_stages: int = Field(1, ge=1)
    """Not available yet: 1."""


class Optimizer(Section):
    """An optimizer, by DeepSpeed's name for it."""

    name: str = "AdamW"
    lr: float = Field(gt=0)
    memory_lr: float | None = Field(None, gt=0)
    """Learning rate of the memory modules. Default: lr."""
    weight_decay: float = Field(0.0, ge=0)
    params: dict[str, Any] = {}
    """Its other arguments, such as betas and eps."""


class Schedule(Section):
    """The learning rate over the steps: a class of DeepSpeed or of torch.optim.lr_scheduler."""

    name: str = "WarmupCosineLR"
    params: dict[str, Any] = {}
    """Its arguments. total_num_steps is training.steps unless given."""


class Checkpoint(Section):
    """Saving and resuming."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints; one more is written at the end."""
    resume: Literal["never", "latest"] = "never"
    """latest: go on from the newest checkpoint of the run, or begin if there is none."""


class Evaluation(Section):
    """Held-out perplexity by segments read."""

    every: int | None = Field(None, ge=1)
    """Steps between evaluations while training. Default: at the end only."""
    segments_read: list[int] = [1, 2, 4, 8]
    """Report tokens that come after this many segments (up to the next number; the last one reaches twice as far)."""
    documents: int | None = Field(None, ge=1)
    """Use the first documents only."""
    batch_size: int | None = Field(None, ge=1)
    """Documents per rank. Default: training.batch_size."""


class Logging(Section):
    """Where the metrics go, besides metrics.jsonl in the run's folder."""

    every: int = Field(1, ge=1)
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "hmt_ds"
    """Project name in wandb."""
    tensorboard: bool = False
    csv: bool = False


class Recipe(Section):
    """A whole training run."""

    model: Model
    memory: Memory
    data: Data
    training: Training
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    deepspeed: str
    """A file with DeepSpeed's own keys; values that the recipe decides are "auto" there."""
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()


def load_recipe(file: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply overrides from the command line.

    Args:
        file: YAML.
        overrides: ``--memory.segment_length 256`` or ``--memory.segment_length=256``, split at blanks.

    Raises:
        ConfigError: with every unreadable, unknown, missing or ill-typed key.
    """
    path = Path(file)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        raise ConfigError([f"{file}: no such recipe" + (f"; did you mean {near[0]}?" if near else "")]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{file}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{file}: a recipe is a mapping of sections, this is {type(values).__name__}"])
    problems = apply_overrides(values, overrides or [])
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems += [describe(problem) for problem in error.errors()]
    if problems:
        raise ConfigError(problems)
    return recipe


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> list[str]:
    """Put ``--a.b value`` into nested mappings, in place; returns what could not be understood."""
    problems, words = [], iter(overrides)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            problems.append(f"{word}: overrides look like --memory.segment_length 256")
            continue
        text = value if equals else next(words, None)
        if text is None:
            problems.append(f"{word}: no value given")
            continue
        *sections, leaf = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                problems.append(f"{key}: {section} is a value, not a section")
                break
        else:
            target[leaf] = yaml.safe_load(text)
    return problems


def describe(problem: Any) -> str:
    """One line for one of pydantic's errors, with a near key where a key is unknown."""
    where = [str(part) for part in problem["loc"] if not str(part).startswith("dict[")]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{did_you_mean(where)}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    shown = problem["input"]
    shown = "" if isinstance(shown, dict) and len(str(shown)) > 80 else f", got {shown!r}"
    message = problem["msg"].replace("Input should be", "must be").replace("Input", "value")
    return f"{key}: {message}{shown}"


def did_you_mean(where: list[str]) -> str:
    """The most similar known key, looked for in the same section and then everywhere."""
    known = dict(keys(Recipe))
    same = [k for k in known if k.split(".")[:-1] == where[:-1]]
    if near := difflib.get_close_matches(".".join(where), same, 1, cutoff=0.75):
        return f"; did you mean {near[0]}?"
    elsewhere = {k.split(".")[-1]: k for k in known}
    near = difflib.get_close_matches(where[-1], elsewhere, 1, cutoff=0.75)
    return f"; did you mean {elsewhere[near[0]]}?" if near else ""


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the recipe with its pydantic field, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from keys(kind, f"{prefix}{name}.")


def find_file(name: str, recipe: str | Path) -> Path | None:
    """A file named in a recipe: relative to the working folder, to the recipe, or to the project."""
    for folder in (Path(), Path(recipe).resolve().parent, PROJECT):
        if (folder / name).is_file():
            return folder / name
    return None
