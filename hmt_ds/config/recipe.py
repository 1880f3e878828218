"""What a recipe can say: the typed schema of a training run. `hmt-ds keys` prints it."""

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
    """A Hugging Face folder or hub name; or a configuration with model_type, for random weights."""
    tokenizer: str | None = None
    """A Hugging Face folder or hub name, or a sentencepiece .model file. Default: where the model is."""
    train: Literal["whole", "frozen", "lora"] = "whole"
    """What of the backbone is trained; the memory modules always are."""
    lora: Lora = Lora()
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    trust_remote_code: bool = False
    """Let a model's folder run code of its own."""


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
    """Where tokenised documents are kept; it may be each machine's own, which then reads the documents itself."""
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
    """Documents that each rank, or each pipeline, reads side by side."""
    gradient_accumulation: int = Field(1, ge=1)
    """Windows per optimizer step."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 for none."""
    max_bad_steps: int = Field(5, ge=1)
    """So many steps in a row whose loss or gradients are not finite are too many. Each is skipped."""
    on_bad_steps: Literal["end", "rollback"] = "end"
    """What to do then. rollback: go back to the newest intact checkpoint, and leave the documents of these steps out
    from then on (left_out.json in the run's folder)."""
    elastic: bool = False
    """On another number of ranks than a checkpoint's, take the batch_size that keeps the rows of all ranks together."""
    hang_minutes: float = Field(10, gt=0)
    """A rank that ends no step, writes no file of a checkpoint and reads no window of an evaluation for so long is
    killed, and the run with it."""
    seed: int = Field(0, ge=0)


class Pipeline(Section):
    """Pipeline parallelism: stages of consecutive layers (hmt_ds/parallel/pipeline)."""

    stages: int = Field(1, ge=1)
    """1: none. Else the ranks are divided into pipelines of so many; training.batch_size is of a pipeline then."""
    micro_batches: Literal["auto"] | PositiveInt = "auto"
    """Parts of the batch that go round side by side; as many as stages, or more, keep all stages busy. auto: the
    fewest that do."""
    layers: Literal["auto", "time"] | list[PositiveInt] = "auto"
    """How many layers each stage has, as a list; auto: balanced by parameters, the head included; time: by what a layer
    and the head take on rank 0's device, measured at the start."""
    live_inputs: PositiveInt | None = None
    """Of the inputs that a stage keeps for its backward passes, so many stay on the GPU, the others go to the host.
    Default: all stay."""
    timeout_minutes: float = Field(10, gt=0)
    """For how long a stage waits for another one before the run ends."""


@section(summary_batch=Literal["auto"] | PositiveInt, leaf_layers=Literal["auto"] | PositiveInt)
class Compute(ComputeSettings):
    """Memory and speed (hmt_ds/parallel). Gradients are the same up to rounding."""


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
    """Its arguments. Unless given, total_num_steps is training.steps, warmup_num_steps a tenth of it, at most 1,000,
    and warmup_max_lr the optimizer's rates."""


class Checkpoint(Section):
    """Saving and resuming."""

    every: int = Field(500, ge=1)
    """Steps between checkpoints; one more is written at the end."""
    resume: Literal["never", "auto"] = "never"
    """auto: go on from the newest intact checkpoint of the run, or begin if there is none."""
    keep: PositiveInt | None = None
    """How many of the newest checkpoints stay. Default: all."""
    milestones: PositiveInt | None = None
    """Checkpoints whose step is a multiple of this stay too."""
    background: bool = False
    """Write while training goes on; takes 12 bytes of the host's memory for each trained weight that a rank holds."""


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
    # (YAML reads a bare off as false)
    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(lambda v: "off" if v is False else v)] = "off"
    project: str = "hmt_ds"
    """Project name in wandb."""
    tensorboard: bool = False
    csv: bool = False
    slow_rank: float = Field(1.5, gt=1)
    """A rank is named whose own work on a step takes so many times as long as most ranks' does."""


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
    """A file with DeepSpeed's own keys; values that the recipe decides are "auto" there."""
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @property
    def micro_batches(self) -> int:
        """Into how many parts a pipeline's rows are divided; 1 without stages."""
        rows = self.training.batch_size
        if self.pipeline.micro_batches != "auto":
            return self.pipeline.micro_batches
        return min((n for n in range(1, rows + 1) if rows % n == 0 and n >= self.pipeline.stages), default=rows)
