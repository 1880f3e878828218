"""The typed schema of a recipe; the docstrings of its fields are the help texts that `hmt-ds keys` prints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from hmt_ds.backbones.settings import LoraSettings
from hmt_ds.config.data_section import Data
from hmt_ds.config.depth_schedule import DepthSchedule, check_depths
from hmt_ds.config.sections import PathText, Section, section
from hmt_ds.data.settings import TaskName
from hmt_ds.memory.settings import MemorySettings
from hmt_ds.parallel.settings import ComputeSettings

AtLeastOne = Annotated[int, Field(ge=1)]


@section(
    rank=Annotated[int, Field(ge=1, le=2**16)],
    alpha=Annotated[float, Field(gt=0)],
    dropout=Annotated[float, Field(ge=0, lt=1)],
)
class Lora(LoraSettings):
    """Settings of low-rank adapters (LoRA), used only if model.train is lora."""


class Model(Section):
    """The backbone: which causal language model, which of its weights are trained, and in which precision."""

    source: PathText | dict[str, Any]
    """Backbone to train: a Hugging Face folder or hub name; a run's folder or one of its checkpoints, to start from its
    weights, memory included; or a mapping of a transformers configuration with model_type, to start from random
    weights."""
    tokenizer: PathText | None = None
    """Hugging Face folder or hub name of the tokenizer, or a sentencepiece .model file. Default: the tokenizer in
    model.source; required if that has none."""
    train: Literal["whole", "frozen", "lora"] = "whole"
    """Which weights of the backbone are trained. whole: all; frozen: none; lora: low-rank adapters only. The memory's
    own weights are always trained."""
    lora: Lora = Lora()
    """Settings of low-rank adapters (LoRA), used only if model.train is lora."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of weights and activations in the forward and backward passes: fp32, bf16, or fp16 (with loss
    scaling). The optimizer keeps float32 weights in any case."""
    trust_remote_code: bool = False
    """Allow Python code that comes with the backbone or its tokenizer to run; it can do anything that your user can.
    evaluate, train and bench on a run's folder ignore this key in the run's recipe: give it on the command line.
    convert never runs such code."""


@section(
    segment_length=AtLeastOne,
    sensory_tokens=Annotated[int, Field(ge=0)],
    memory_tokens=AtLeastOne,
    cached_memories=AtLeastOne,
    last_memories=AtLeastOne,
    recalled_memories=AtLeastOne,
    recall_loss=Annotated[float, Field(ge=0)],
    summary_fraction=Annotated[float, Field(gt=0, le=1)],
    recall_dim=Annotated[int | None, Field(ge=1, le=2**20)],
)
class Memory(MemorySettings):
    """Settings of the memory: what the backbone reads before each segment and writes after it."""


class Training(Section):
    """The training loop: number of steps, batch sizes, gradient clipping, and what happens after failures."""

    output: PathText
    """Folder to write the run to: its recipe, metrics and checkpoints. It is created if missing."""
    steps: int = Field(ge=1)
    """Number of optimizer steps of the whole run. A resumed run stops at this number as well; the steps before it was
    resumed count."""
    bptt_depth: Annotated[AtLeastOne | dict[int, int], BeforeValidator(check_depths)] = 8
    """Truncated BPTT: number of segments of a document that gradients flow back through; this many segments are one
    window. Or a schedule by optimizer steps: {0: 2, 200: 4} is 2 in the first 200 steps, then 4."""
    random_depth: bool = False
    """Draw the number of segments that gradients flow through in each optimizer step at random, from 1 to
    training.bptt_depth. The draw depends on training.seed and the step, and is equal on all ranks."""
    batch_size: int = Field(1, ge=1)
    """Number of documents that a rank (with pipeline stages: a pipeline) reads side by side, one per row of
    the batch."""
    gradient_accumulation: int = Field(1, ge=1)
    """Number of windows (training.bptt_depth segments of every row) whose gradients are accumulated for one optimizer
    step."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Maximum L2 norm of all gradients together; larger gradients are scaled down to it. 0: no clipping."""
    max_bad_steps: int = Field(5, ge=1)
    """Number of consecutive optimizer steps skipped because of non-finite loss or gradients after which the action of
    training.on_bad_steps is taken."""
    on_bad_steps: Literal["end", "rollback"] = "end"
    """Action after training.max_bad_steps consecutive steps with non-finite loss or gradients. end: end the run with an
    error. rollback: resume from the newest intact checkpoint, leaving out the documents that may have caused it (listed
    in left_out.json in the run's folder)."""
    elastic: bool = False
    """Allow resuming with another number of ranks, by adapting training.batch_size so that the total number of rows
    of a step stays equal. false: refuse to resume if the total number of rows differs."""
    hang_minutes: float = Field(10, gt=0, le=10**6)
    """Minutes without progress on a rank (no step, no part of a checkpoint, no batch of an evaluation) after which the
    run is ended."""
    seed: int = Field(0, ge=0)
    """Seed of random initial weights, order of the data, dropout and random depths."""


class Pipeline(Section):
    """Pipeline parallelism: the model's layers are divided into consecutive stages, one per rank."""

    stages: int = Field(1, ge=1)
    """Number of pipeline stages, each on a rank of its own; 1 means no pipeline. With more, training.batch_size counts
    the rows of a whole pipeline."""
    micro_batches: Literal["auto"] | PositiveInt = "auto"
    """Number of micro-batches that a pipeline splits the rows of a batch into. auto: the smallest divisor of
    training.batch_size that is at least pipeline.stages, which keeps all stages busy; if there is none,
    training.batch_size."""
    layers: Literal["auto", "time"] | list[PositiveInt] = "auto"
    """How decoder layers are divided into pipeline stages. A list: number of layers of each stage. auto: about equal
    numbers of parameters, the output head included. time: about equal times, after measuring a layer and the head on
    rank 0's device at the start."""
    live_inputs: PositiveInt | None = None
    """Number of stage inputs, kept for the backward pass, that stay on the GPU; further ones are offloaded to host
    memory. Default: all stay on the GPU. For pipelines only."""
    timeout_minutes: float = Field(10, gt=0, le=10**6)
    """Minutes that a pipeline stage waits for a message from another stage before it ends the run with an error."""


@section(summary_batch=Literal["auto"] | PositiveInt, leaf_layers=Literal["auto"] | PositiveInt)
class Compute(ComputeSettings):
    """Settings that trade memory for speed, such as activation checkpointing; gradients change by rounding only."""


class Optimizer(Section):
    """The optimizer: its class, learning rates, weight decay and further arguments."""

    name: str = "AdamW"
    """Class name of an optimizer of DeepSpeed or torch.optim, such as AdamW."""
    lr: float = Field(gt=0)
    """Learning rate of the backbone's trained weights, before the learning-rate schedule scales or replaces it."""
    memory_lr: float | None = Field(None, gt=0)
    """Learning rate of the memory's own weights, before the learning-rate schedule scales or replaces it. Default:
    optimizer.lr."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay coefficient of all trained weights; 0: no decay."""
    params: dict[str, Any] = Field({})
    """Further arguments of the optimizer's class by name, such as {betas: [0.9, 0.95], eps: 1e-8}. Default: the class's
    own defaults."""


class Schedule(Section):
    """The learning-rate schedule: how the learning rate changes from step to step."""

    name: str = "WarmupCosineLR"
    """Class name of a learning-rate schedule of DeepSpeed or torch.optim.lr_scheduler, such as WarmupCosineLR."""
    params: dict[str, Any] = Field({})
    """Arguments of the learning-rate schedule's class by name. Those left out of a DeepSpeed schedule: total_num_steps
    is training.steps (one more for WarmupDecayLR), warmup_num_steps a tenth of training.steps but at most 1,000, and
    warmup_max_lr the optimizer's learning rates."""


class Checkpoint(Section):
    """When checkpoints are saved, which are kept, and whether a run resumes."""

    every: int = Field(500, ge=1)
    """Number of optimizer steps between checkpoints. A last checkpoint is written at the end of the run in any case."""
    resume: Literal["never", "auto"] = "never"
    """What to do at the start. never: begin with step 1, in a folder that holds no run yet. auto: resume from the run's
    newest intact checkpoint, or begin with step 1 if there is none."""
    rate_jump: bool = False
    """Allow resuming although a changed training.steps makes the learning rate jump by more than a tenth. false:
    refuse."""
    keep: PositiveInt | None = None
    """Number of newest checkpoints to keep; older ones are deleted. Default: all are kept."""
    milestones: PositiveInt | None = None
    """Also keep every checkpoint whose step is a multiple of this number, in addition to the checkpoint.keep newest
    ones. Default: none."""
    background: bool = False
    """Write checkpoints in a thread while training continues. It takes 12 bytes of host memory for each trained weight
    that a rank saves (float32 weight and two optimizer states). false: training waits until the checkpoint is written.
    """


class Evaluation(Section):
    """Evaluation on held-out documents: how often, on which, and how results are grouped."""

    every: int | None = Field(None, ge=1)
    """Number of optimizer steps between evaluations, which during training measure only the loss with memory. Default:
    evaluate only at the end of training."""
    segments_read: list[int] = Field([1, 2, 4, 8])
    """Where to divide the table of held-out losses, by how many segments of the document were read before a token.
    Ascending; each number begins a row, and the last row ends before its double: [1, 2, 4, 8] gives rows for 1, 2-3,
    4-7 and 8-15."""
    documents: int | None = Field(None, ge=1)
    """Number of held-out documents to evaluate, from the first on. Default: all."""
    batch_size: int | None = Field(None, ge=1)
    """Documents that a rank reads side by side in an evaluation; at least 2 to measure the loss with another document's
    memories. Default: training.batch_size."""
    retrieval_segments: list[AtLeastOne] | None = None
    """Lengths, in segments, of the generated documents to evaluate retrieval on; only with data.retrieval. Default: the
    training documents' length (training.bptt_depth), and 10 times that."""
    tasks: list[TaskName] = Field([])
    """Names of question-answering tasks to evaluate on generated documents, each of which ends in a question: passkey,
    babilong-qa1 to babilong-qa5. Default: none."""
    tasks_every: int | None = Field(None, ge=1)
    """Number of optimizer steps between evaluations of the tasks in evaluation.tasks. During training each document is
    read only with its own memories; at the end of training also with another document's and with none. Default:
    evaluation.every."""
    tasks_lengths: list[AtLeastOne] | None = Field(None, min_length=1)
    """Lengths, in tokens, of the documents that are generated for evaluation.tasks. Default: the length over which
    gradients flow in training (training.bptt_depth x memory.segment_length)."""
    tasks_documents: int = Field(64, ge=2)
    """Number of documents to generate for each task of evaluation.tasks and each length."""


class Logging(Section):
    """Where metrics are written and how often, besides metrics.jsonl in the run's folder."""

    every: int = Field(1, ge=1)
    """Number of optimizer steps between rows of metrics, and between lines of the log if it does not go to a terminal.
    """
    # (YAML reads a bare off as false)
    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(lambda v: "off" if v is False else v)] = "off"
    """Log metrics to Weights & Biases. off: no; online: upload them during the run; offline: write them to the run's
    folder, to upload later with `wandb sync`."""
    project: str = "hmt_ds"
    """Name of the project in Weights & Biases, and in the trackers of logging.trackers."""
    tensorboard: bool = False
    """Write metrics as TensorBoard event files to the run's folder, in addition to metrics.jsonl."""
    csv: bool = False
    """Write metrics to metrics.csv in the run's folder, in addition to metrics.jsonl."""
    trackers: list[Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio"]] = Field([])
    """Further experiment trackers to log metrics to; the package of each must be installed. Their servers and accounts
    are set in their own environment variables, such as MLFLOW_TRACKING_URI."""
    slow_rank: float = Field(1.5, gt=1)
    """Report a rank as slow if its own work on a step takes this many times as long as the median over all ranks; above
    1."""
    memory_probe: float = Field(0.01, ge=0, le=1)
    """Largest share (0 to 1) of the training time spent on reading segments with another document's memories, to warn
    if the model ignores its memory or always retrieves the same one. 0: never. Pipelines have only the first of the two
    warnings."""


class Recipe(Section):
    """All settings of a training run, by section."""

    model: Model
    memory: Memory
    data: Data
    training: Training
    pipeline: Pipeline = Pipeline()
    compute: Compute = Compute()
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    deepspeed: PathText
    """Path of a DeepSpeed configuration file in JSON, such as ds_configs/zero1.json; relative to the working folder,
    the recipe's folder or the project. Keys that the recipe sets, such as batch sizes, must be "auto" in it."""
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    logging: Logging = Logging()

    @property
    def depths(self) -> DepthSchedule:
        """Depth of truncated BPTT (number of segments that gradients flow through) in each optimizer step."""
        depth, seed = self.training.bptt_depth, self.training.seed if self.training.random_depth else None
        stages = depth if isinstance(depth, dict) else {0: depth}
        # in a generated document of one segment, nothing is asked
        return DepthSchedule(stages, seed, shortest=2 if self.data.retrieval else 1)

    @property
    def retrieval_segments(self) -> list[int]:
        """Lengths, in segments, of the generated documents to evaluate, ascending; empty without ``data.retrieval``."""
        if self.data.retrieval is None:
            return []
        depth = self.depths.largest
        return sorted(set(self.evaluation.retrieval_segments or [depth, 10 * depth]))

    @property
    def tasks_lengths(self) -> list[int]:
        """Lengths, in tokens, of the generated documents on which ``evaluation.tasks`` are evaluated, ascending."""
        window = self.depths.largest * self.memory.segment_length
        return sorted(set(self.evaluation.tasks_lengths or [window]))

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches that a pipeline splits the rows of a batch into; 1 without pipeline stages."""
        rows = self.training.batch_size
        if self.pipeline.micro_batches != "auto":
            return self.pipeline.micro_batches
        return min((n for n in range(1, rows + 1) if rows % n == 0 and n >= self.pipeline.stages), default=rows)
