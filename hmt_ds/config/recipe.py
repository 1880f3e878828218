"""The typed schema of a recipe. `hmt-ds keys` prints it, with the docstrings of the fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from hmt_ds.backbones.settings import LoraSettings
from hmt_ds.config.sections import STRICT, section
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.parallel.settings import ComputeSettings

AtLeastOne = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, and a field's docstring is its help text."""

    model_config = ConfigDict(**STRICT, frozen=True)


@section(
    rank=AtLeastOne,
    alpha=Annotated[float, Field(gt=0)],
    dropout=Annotated[float, Field(ge=0, lt=1)],
)
class Lora(LoraSettings):
    """Low-rank adapters, used with model.train lora."""


class Model(Section):
    """The backbone."""

    source: str | dict[str, Any]
    """Hugging Face folder or hub name; or a configuration with model_type, for random weights."""
    tokenizer: str | None = None
    """Hugging Face folder or hub name, or a sentencepiece .model file. Default: the same as source."""
    train: Literal["whole", "frozen", "lora"] = "whole"
    """Which weights of the backbone are trained: all, none, or LoRA adapters. The memory modules are always trained."""
    lora: Lora = Lora()
    """Low-rank adapters."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of the forward and backward passes."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@section(
    segment_length=AtLeastOne,
    sensory_tokens=Annotated[int, Field(ge=0)],
    memory_tokens=AtLeastOne,
    cached_memories=AtLeastOne,
    summary_fraction=Annotated[float, Field(gt=0, le=1)],
    recall_dim=Annotated[int | None, Field(ge=1)],
)
class Memory(MemorySettings):
    """The memory around the backbone (hmt_ds/memory)."""


class Source(Section):
    """Where documents come from."""

    source: str
    """File or folder of text, JSONL or Parquet; a saved data set; or the name of a data set on the hub."""
    text_field: str = "text"
    """Column that holds the text."""
    split: str = "train"
    """Split to read; files have only train (parts as in train[:10%])."""
    name: str | None = None
    """Configuration of a data set on the hub."""
    separator: str | None = None
    """For text files: a regular expression that the first line of each document matches. Default: one document per
    file."""


class Data(Section):
    """Training and held-out documents."""

    train: Source
    validation: Source | None = None
    """Held-out documents for evaluation."""
    cache_dir: str = "runs/cache"
    """Folder for tokenized documents. If it is local to each machine, each machine tokenizes the documents itself."""
    workers: int = Field(0, ge=0)
    """Data loader processes per rank. The order of the data does not depend on it."""


class Training(Section):
    """The training loop."""

    output: str
    """Folder of the run: recipe, metrics, checkpoints."""
    steps: int = Field(ge=1)
    """Number of optimizer steps."""
    bptt_depth: int = Field(8, ge=1)
    """Segments per window: how many segments gradients flow back through (truncated BPTT)."""
    batch_size: int = Field(1, ge=1)
    """Rows per rank, or per pipeline: documents that are read in parallel."""
    gradient_accumulation: int = Field(1, ge=1)
    """Windows whose gradients are accumulated for one optimizer step."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Maximum gradient norm; 0 turns clipping off."""
    max_bad_steps: int = Field(5, ge=1)
    """After this many consecutive skipped steps (non-finite loss or gradients), do what on_bad_steps says."""
    on_bad_steps: Literal["end", "rollback"] = "end"
    """What to do after max_bad_steps. end: end the run; rollback: resume from the newest intact checkpoint and leave
    the documents of these steps out from then on (left_out.json in the run's folder)."""
    elastic: bool = False
    """When resuming on another number of ranks, change batch_size so that the total number of rows stays the same."""
    hang_minutes: float = Field(10, gt=0)
    """Kill the run if a rank makes no progress for this long: no step, no part of a checkpoint, no window of an
    evaluation."""
    seed: int = Field(0, ge=0)
    """Seed of random weights, of the order of the data and of dropout."""


class Pipeline(Section):
    """Pipeline parallelism: stages of consecutive layers (hmt_ds/parallel/pipeline)."""

    stages: int = Field(1, ge=1)
    """Stages per pipeline; 1: no pipeline. With more, the ranks form pipelines, and training.batch_size counts the rows
    of a pipeline."""
    micro_batches: Literal["auto"] | PositiveInt = "auto"
    """Micro-batches per window. auto: the smallest divisor of batch_size that is at least the number of stages, which
    keeps all stages busy; else batch_size."""
    layers: Literal["auto", "time"] | list[PositiveInt] = "auto"
    """Layers per stage, as a list. auto: balanced by parameters, the head included; time: balanced by the time of a
    layer and of the head, measured on rank 0's device at the start."""
    live_inputs: PositiveInt | None = None
    """How many of the inputs that a stage keeps for its backward passes stay on the GPU; the others are offloaded to
    the host. Default: all stay."""
    timeout_minutes: float = Field(10, gt=0)
    """End the run when a stage has waited this long for another stage."""


@section(summary_batch=Literal["auto"] | PositiveInt, leaf_layers=Literal["auto"] | PositiveInt)
class Compute(ComputeSettings):
    """Memory and speed (hmt_ds/parallel). Gradients are the same up to rounding."""


class Optimizer(Section):
    """The optimizer."""

    name: str = "AdamW"
    """Optimizer of DeepSpeed or torch.optim, by class name."""
    lr: float = Field(gt=0)
    """Learning rate."""
    memory_lr: float | None = Field(None, gt=0)
    """Learning rate of the memory modules. Default: lr."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay."""
    params: dict[str, Any] = {}
    """Other arguments of the optimizer, such as betas and eps."""


class Schedule(Section):
    """The learning-rate schedule."""

    name: str = "WarmupCosineLR"
    """Class of DeepSpeed or of torch.optim.lr_scheduler."""
    params: dict[str, Any] = {}
    """Arguments of the schedule. Defaults: total_num_steps is training.steps, warmup_num_steps a tenth of that but at
    most 1,000, and warmup_max_lr the optimizer's learning rates."""


class Checkpoint(Section):
    """Saving and resuming."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints. A last checkpoint is written at the end of the run."""
    resume: Literal["never", "auto"] = "never"
    """never: start from the beginning, in a folder that holds no run yet. auto: resume from the newest intact
    checkpoint of the run, or start from the beginning if there is none."""
    keep: PositiveInt | None = None
    """How many of the newest checkpoints to keep. Default: all."""
    milestones: PositiveInt | None = None
    """Also keep the checkpoints whose step is a multiple of this."""
    background: bool = False
    """Write checkpoints while training continues; takes 12 bytes of host memory per trained weight that the rank
    saves."""


class Evaluation(Section):
    """Held-out perplexity by number of segments read."""

    every: int | None = Field(None, ge=1)
    """Steps between evaluations during training. Default: at the end only."""
    segments_read: list[int] = [1, 2, 4, 8]
    """Lower bounds of the table's rows, in segments read before: 1, 2, 4, 8 gives 1, 2-3, 4-7, 8-15."""
    documents: int | None = Field(None, ge=1)
    """Evaluate only this many of the first documents. Default: all."""
    batch_size: int | None = Field(None, ge=1)
    """Rows per rank. Default: training.batch_size."""


class Logging(Section):
    """Where metrics are written, besides metrics.jsonl in the run's folder."""

    every: int = Field(1, ge=1)
    """Steps between lines of metrics, and of the log where there is no terminal."""
    # (YAML reads a bare off as false)
    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(lambda v: "off" if v is False else v)] = "off"
    """Log to Weights & Biases."""
    project: str = "hmt_ds"
    """Project name in Weights & Biases."""
    tensorboard: bool = False
    """Write TensorBoard events to the run's folder."""
    csv: bool = False
    """Write metrics.csv to the run's folder."""
    slow_rank: float = Field(1.5, gt=1)
    """Name a rank as a straggler if its own work on a step takes this many times as long as the median of the ranks."""


class Recipe(Section):
    """A whole training run."""

    model: Model
    memory: Memory
    data: Data
    training: Training
    pipeline: Pipeline = Pipeline()
    compute: Compute = Compute()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    deepspeed: str
    """DeepSpeed configuration file (see ds_configs). Write "auto" there for values that the recipe sets."""
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @property
    def micro_batches(self) -> int:
        """Micro-batches per window of a pipeline; 1 without one."""
        rows = self.training.batch_size
        if self.pipeline.micro_batches != "auto":
            return self.pipeline.micro_batches
        return min((n for n in range(1, rows + 1) if rows % n == 0 and n >= self.pipeline.stages), default=rows)
