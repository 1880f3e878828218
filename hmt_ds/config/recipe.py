"""The typed schema of a recipe. `hmt-ds keys` prints its keys with the docstrings of the fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from hmt_ds.backbones.settings import LoraSettings
from hmt_ds.config.data_section import Data
from hmt_ds.config.depth_schedule import DepthSchedule, check_depths
from hmt_ds.config.sections import PathText, Section, section
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.parallel.settings import ComputeSettings

AtLeastOne = Annotated[int, Field(ge=1)]


@section(
    rank=Annotated[int, Field(ge=1, le=2**16)],
    alpha=Annotated[float, Field(gt=0)],
    dropout=Annotated[float, Field(ge=0, lt=1)],
)
class Lora(LoraSettings):
    """Low-rank adapters (LoRA), used if model.train is lora."""


class Model(Section):
    """The backbone: a pretrained or randomly initialised causal language model."""

    source: PathText | dict[str, Any]
    """Hugging Face folder or hub name of the backbone; a run or one of its checkpoints, whose weights (memory included)
    training starts from; or a transformers configuration with model_type, for random weights."""
    tokenizer: PathText | None = None
    """Hugging Face folder or hub name of the tokenizer, or a sentencepiece .model file. Default: the tokenizer in
    model.source."""
    train: Literal["whole", "frozen", "lora"] = "whole"
    """Which weights of the backbone are trained. whole: all; frozen: none; lora: adapters. The memory modules are
    always trained."""
    lora: Lora = Lora()
    """Low-rank adapters (LoRA), used if model.train is lora."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of weights and activations in the forward and backward passes; fp16 scales the loss. The optimizer
    keeps float32 weights."""
    trust_remote_code: bool = False
    """Run Python code that comes with the backbone or its tokenizer, which can do anything your user can. For a run's
    folder, evaluate, train and bench ignore the value in the run's recipe: give it on the command line. convert never
    runs such code."""


@section(
    segment_length=AtLeastOne,
    sensory_tokens=Annotated[int, Field(ge=0)],
    memory_tokens=AtLeastOne,
    cached_memories=AtLeastOne,
    recalled_memories=AtLeastOne,
    recall_loss=Annotated[float, Field(ge=0)],
    summary_fraction=Annotated[float, Field(gt=0, le=1)],
    recall_dim=Annotated[int | None, Field(ge=1, le=2**20)],
)
class Memory(MemorySettings):
    """The memory around the backbone (hmt_ds/memory)."""


class Training(Section):
    """The training loop: steps, batch sizes, gradient clipping, and what happens after failures."""

    output: PathText
    """Folder to write the run to: recipe, metrics, checkpoints."""
    steps: int = Field(ge=1)
    """Number of optimizer steps of the whole run; a resumed run continues up to this number."""
    bptt_depth: Annotated[AtLeastOne | dict[int, int], BeforeValidator(check_depths)] = 8
    """Segments per window: gradients flow back through this many segments of a document (truncated BPTT). Or a
    schedule: {0: 2, 200: 4} is 2 in the first 200 optimizer steps, and 4 after them."""
    random_depth: bool = False
    """Draw the number of segments per window of each optimizer step at random, from 1 to training.bptt_depth. The draw
    depends on training.seed and the step, and is equal on all ranks."""
    batch_size: int = Field(1, ge=1)
    """Rows per rank in each window; with pipeline stages, rows per pipeline. A row reads one document at a time."""
    gradient_accumulation: int = Field(1, ge=1)
    """Number of windows (of bptt_depth segments) whose gradients are accumulated for one optimizer step."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Maximum L2 norm of all gradients together; larger ones are scaled down to it. 0: no clipping."""
    max_bad_steps: int = Field(5, ge=1)
    """Number of consecutive skipped steps (non-finite loss or gradients) after which training.on_bad_steps is done."""
    on_bad_steps: Literal["end", "rollback"] = "end"
    """Action after training.max_bad_steps consecutive skipped steps. end: end the run. rollback: resume from the newest
    intact checkpoint, and from then on leave out the documents that may have caused the skipped steps (listed in
    left_out.json in the run's folder)."""
    elastic: bool = False
    """Adapt training.batch_size on resuming with another number of ranks, so that the total number of rows stays
    equal."""
    hang_minutes: float = Field(10, gt=0, le=10**6)
    """Minutes without progress on a rank (no step, no part of a checkpoint, no window of an evaluation) after which the
    run is killed."""
    seed: int = Field(0, ge=0)
    """Seed of random weights, data order, dropout and random depths."""


class Pipeline(Section):
    """Pipeline parallelism: stages of consecutive layers (hmt_ds/parallel/pipeline)."""

    stages: int = Field(1, ge=1)
    """Stages per pipeline; 1 means no pipeline. With more, the ranks form pipelines, and training.batch_size counts the
    rows of a pipeline."""
    micro_batches: Literal["auto"] | PositiveInt = "auto"
    """Number of micro-batches that a pipeline splits the rows of each window into. auto: the smallest divisor of
    training.batch_size that is at least pipeline.stages, which keeps all stages busy; else training.batch_size."""
    layers: Literal["auto", "time"] | list[PositiveInt] = "auto"
    """Number of decoder layers of each stage, as a list. auto: stages of about equal numbers of parameters, the head
    included. time: stages of about equal time, after measuring a layer and the head on rank 0's device at the start."""
    live_inputs: PositiveInt | None = None
    """Number of stage inputs stashed for the backward pass that stay on the GPU; others are offloaded to host memory.
    Default: all stay on the GPU."""
    timeout_minutes: float = Field(10, gt=0, le=10**6)
    """Minutes that a stage waits for a message from another stage; after that the run is ended with an error."""


@section(summary_batch=Literal["auto"] | PositiveInt, leaf_layers=Literal["auto"] | PositiveInt)
class Compute(ComputeSettings):
    """Settings that trade memory for speed (hmt_ds/parallel). They do not change gradients except by rounding."""


class Optimizer(Section):
    """The optimizer and its learning rates."""

    name: str = "AdamW"
    """Class name of an optimizer of DeepSpeed or torch.optim."""
    lr: float = Field(gt=0)
    """Learning rate of the backbone's trained weights before the schedule, which scales or replaces it."""
    memory_lr: float | None = Field(None, gt=0)
    """Learning rate of the memory modules before the schedule. Default: optimizer.lr."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay coefficient of all trained weights, passed to the optimizer; 0: no decay."""
    params: dict[str, Any] = Field({})
    """Further arguments of the optimizer by name, such as betas and eps. Default: the optimizer's own defaults."""


class Schedule(Section):
    """The learning-rate schedule."""

    name: str = "WarmupCosineLR"
    """Class name of a learning-rate schedule of DeepSpeed or torch.optim.lr_scheduler."""
    params: dict[str, Any] = Field({})
    """Arguments of the learning-rate schedule. Defaults: total_num_steps is training.steps (one more for
    WarmupDecayLR), warmup_num_steps a tenth of training.steps but at most 1,000, and warmup_max_lr the optimizer's
    learning rates."""


class Checkpoint(Section):
    """When checkpoints are saved, which are kept, and whether a run resumes."""

    every: int = Field(500, ge=1)
    """Number of optimizer steps between checkpoints. A last checkpoint is written at the end of the run."""
    resume: Literal["never", "auto"] = "never"
    """never: start from the beginning, in a folder that holds no run yet. auto: resume from the newest intact
    checkpoint of the run, or start from the beginning if there is none."""
    rate_jump: bool = False
    """Resume even if a changed training.steps makes the learning rate jump by more than a tenth. Default: refuse to."""
    keep: PositiveInt | None = None
    """Number of newest checkpoints to keep. Default: all."""
    milestones: PositiveInt | None = None
    """Also keep every checkpoint whose step is a multiple of this number, in addition to checkpoint.keep. Default:
    none."""
    background: bool = False
    """Write checkpoints in a thread while training continues; takes 12 bytes of host memory for each trained weight
    that a rank saves (float32 weight and two optimizer states). Default: training waits for the disk."""


class Evaluation(Section):
    """Evaluation of held-out losses, and of what the memory contributes to them (hmt_ds/evaluation)."""

    every: int | None = Field(None, ge=1)
    """Number of optimizer steps between evaluations, which during training measure only the loss with memory. Default:
    evaluate only at the end of training."""
    segments_read: list[int] = Field([1, 2, 4, 8])
    """Rows of the table of losses, by the number of segments that precede a token in its document. Each value begins a
    row, and the last row reaches to twice its beginning: 1, 2, 4, 8 gives rows for 1, 2-3, 4-7 and 8-15."""
    documents: int | None = Field(None, ge=1)
    """Number of held-out documents to evaluate, from the first on. Default: all."""
    batch_size: int | None = Field(None, ge=1)
    """Rows per rank in an evaluation; at least 2 to compare with another document's memories. Default:
    training.batch_size."""
    retrieval_segments: list[AtLeastOne] | None = None
    """Lengths, in segments, of the generated documents to evaluate if there is data.retrieval. Default: that of the
    documents in training (training.bptt_depth), and 10 times that."""


class Logging(Section):
    """Outputs of metrics, besides metrics.jsonl in the run's folder."""

    every: int = Field(1, ge=1)
    """Number of optimizer steps between rows of metrics, and between lines of the log if there is no terminal."""
    # (YAML reads a bare off as false)
    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(lambda v: "off" if v is False else v)] = "off"
    """Log metrics to Weights & Biases. off: no; online: upload them; offline: write them to the run's folder, to upload
    with `wandb sync`."""
    project: str = "hmt_ds"
    """Name of the project that metrics are logged to in Weights & Biases and in logging.trackers."""
    tensorboard: bool = False
    """Write metrics as TensorBoard events to the run's folder."""
    csv: bool = False
    """Write metrics to metrics.csv in the run's folder."""
    trackers: list[Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio"]] = Field([])
    """Further trackers to log metrics to, through accelerate; install the package of each. Their servers and accounts
    are set in their own environment variables, such as MLFLOW_TRACKING_URI."""
    slow_rank: float = Field(1.5, gt=1)
    """Report a rank as slow if its own work on a step takes this many times the median over all ranks."""
    memory_probe: float = Field(0.01, ge=0, le=1)
    """Largest share of the time that is spent on reading windows with other memories, to warn if the memory is ignored
    or the recall collapses. 0: never. Not on pipelines."""


class Recipe(Section):
    """All settings of a training run."""

    model: Model
    memory: Memory
    data: Data
    training: Training
    pipeline: Pipeline = Pipeline()
    compute: Compute = Compute()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    deepspeed: PathText
    """Path of a DeepSpeed configuration file (see ds_configs). In the file, keys whose value comes from the recipe,
    such as batch sizes, are "auto"."""
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @property
    def depths(self) -> DepthSchedule:
        """The number of segments per window in each optimizer step, from ``training.bptt_depth`` and
        ``random_depth``."""
        depth, seed = self.training.bptt_depth, self.training.seed if self.training.random_depth else None
        stages = depth if isinstance(depth, dict) else {0: depth}
        # in a generated document of one segment, nothing is asked
        return DepthSchedule(stages, seed, shortest=2 if self.data.retrieval else 1)

    @property
    def retrieval_segments(self) -> list[int]:
        """Lengths, in segments, of the generated documents to evaluate, ascending; empty without data.retrieval."""
        if self.data.retrieval is None:
            return []
        depth = self.depths.largest
        return sorted(set(self.evaluation.retrieval_segments or [depth, 10 * depth]))

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches that a pipeline splits the rows of each window into; 1 without pipeline stages."""
        rows = self.training.batch_size
        if self.pipeline.micro_batches != "auto":
            return self.pipeline.micro_batches
        return min((n for n in range(1, rows + 1) if rows % n == 0 and n >= self.pipeline.stages), default=rows)
