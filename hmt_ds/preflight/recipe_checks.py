"""Check a recipe's settings against each other, this machine and the backbone's configuration."""

from importlib.util import find_spec

import numpy as np
import torch
from transformers import PreTrainedConfig

from hmt_ds.backbones import family_of
from hmt_ds.config.recipe import Recipe
from hmt_ds.memory.settings import MemorySettings

MOST_TOKENS = 2**30  # of one step on one rank; it holds the ids of all of them on the host


def check_training(recipe: Recipe) -> list[str]:
    """Return an error line for each setting of a recipe that contradicts another one or needs what this machine
    lacks."""
    problems = []
    memory = recipe.memory
    if memory.sensory_tokens > memory.segment_length:
        problems.append(
            f"memory.sensory_tokens is {memory.sensory_tokens}, more than a segment has ({memory.segment_length}): "
            "take fewer"
        )
    training = recipe.training
    tokens = training.batch_size * training.gradient_accumulation * recipe.depths.largest * memory.segment_length
    if tokens > MOST_TOKENS:
        problems.append(
            f"training: batch_size {training.batch_size} x gradient_accumulation {training.gradient_accumulation} x "
            f"bptt_depth {recipe.depths.largest} x memory.segment_length {memory.segment_length} are {tokens:,} tokens "
            f"per rank and step: must be at most {MOST_TOKENS:,}, lower one of them"
        )
    if recipe.data.pack and recipe.data.retrieval:
        problems.append("data.pack: not with data.retrieval, whose documents fill whole segments: set it to false")
    problems += check_memory_recall(recipe)
    if recipe.compute.recompute == "reentrant":
        problems.append(
            "compute.recompute: reentrant checkpointing fails at ZeRO-2 and gives wrong gradients at ZeRO-3: "
            "use segment"
        )
    if recipe.model.precision == "fp16" and not torch.cuda.is_available():
        problems.append("model.precision: fp16 needs a GPU, and there is none here: use bf16 or fp32")
    if late := [step for step in recipe.depths.stages if step >= recipe.training.steps]:
        problems.append(
            f"training.bptt_depth: step {late[0]} of the schedule is never reached, training.steps is "
            f"{recipe.training.steps}: lower the first, or raise the second"
        )
    counts = recipe.evaluation.segments_read
    if counts != sorted(set(counts)) or not counts or counts[0] < 0:
        problems.append(
            f"evaluation.segments_read is {counts}: must be ascending numbers of segments, such as [1, 2, 4]"
        )
    return problems + check_tasks(recipe) + check_trackers(recipe) + check_source(recipe)


def check_tasks(recipe: Recipe) -> list[str]:
    """Return an error line for each ``evaluation.tasks...`` setting that has no effect or cannot be scored.

    Args:
        recipe: the recipe.
    """
    asked, memory = recipe.evaluation, recipe.memory
    if not asked.tasks:
        given = [name for name in ("tasks_every", "tasks_lengths") if getattr(asked, name) is not None]
        return [f"evaluation.{name}: only with evaluation.tasks: name tasks, or leave it out" for name in given]
    if memory.summarises and memory.interface == "paper":
        return [
            "evaluation.tasks: memory.interface paper in mode hmt recalls by a segment's first tokens, the answer "
            "among them: take interface adapted, or ask after training with hmt-ds evaluate --tasks"
        ]
    return []


def check_trackers(recipe: Recipe) -> list[str]:
    """Return an error line that names the missing packages of logging.trackers; an empty list if all are installed.

    Args:
        recipe: the recipe.
    """
    needed = ["accelerate", *recipe.logging.trackers] if recipe.logging.trackers else []
    missing = [name for name in needed if find_spec(name) is None]
    listed = " ".join(name.replace("_", "-") for name in missing)
    return [f"logging.trackers: {', '.join(missing)} not installed here: pip install {listed}"] if missing else []


def check_curriculum(recipe: Recipe, lengths: np.ndarray) -> list[str]:
    """Return an error line if a schedule of depths asks for more segments than any document has; else an empty list.

    The depth is the number of segments that gradients flow through. A constant depth may be larger than the documents:
    a row then reads several documents one after the other.

    Args:
        recipe: the recipe.
        lengths: number of tokens of each document, ``[documents]``.
    """
    longest = -(-int(lengths.max()) // recipe.memory.segment_length)
    depth = recipe.depths.largest
    if isinstance(recipe.training.bptt_depth, int) or depth <= longest:
        return []
    return [
        f"training.bptt_depth: a curriculum longer than the documents: the longest of data.train has {longest} "
        f"segments of {recipe.memory.segment_length} tokens, the schedule asks for {depth}: take longer documents, or "
        "smaller depths"
    ]


def check_source(recipe: Recipe) -> list[str]:
    """Return an error line if the recipe has neither data.train nor data.retrieval, or both; else an empty list."""
    if recipe.data.train is None and recipe.data.retrieval is None:
        return ["data.train: missing (or data.retrieval, to generate documents): name documents to train on"]
    if recipe.data.train is not None and recipe.data.retrieval is not None:
        return ["data.train, data.retrieval: a run trains on one of them, leave the other out"]
    return []


def check_memory_recall(recipe: Recipe) -> list[str]:
    """Return an error line for each retrieval setting that the memory's interface, its mode or the data do not support.

    Args:
        recipe: the recipe.
    """
    memory, problems = recipe.memory, []
    default = MemorySettings(memory.segment_length)
    chooses = memory.interface == "adapted" and memory.mode == "hmt"
    for key in ("recalled_memories", "recall_loss"):
        value, usual = getattr(memory, key), getattr(default, key)
        if not chooses and value != usual:
            problems.append(
                f"memory.{key} is {value}, but it needs interface adapted and mode hmt (here {memory.interface} and "
                f"{memory.mode}): leave it out, or change them"
            )
    if memory.last_memories > 1 and memory.interface != "adapted":
        problems.append(
            f"memory.last_memories is {memory.last_memories}, but more than 1 needs interface adapted (here "
            f"{memory.interface}): leave it out, or change the interface"
        )
    if chooses and not memory.sensory_tokens:
        problems.append(
            "memory.sensory_tokens is 0, but with interface adapted and mode hmt they ask for older memories: take at "
            "least 1"
        )
    if chooses and memory.recalled_memories + memory.last_memories > memory.cached_memories:
        problems.append(
            f"memory.recalled_memories is {memory.recalled_memories} and memory.last_memories {memory.last_memories}, "
            f"but only {memory.cached_memories} memories are cached: raise memory.cached_memories"
        )
    if chooses and memory.recall_loss and recipe.data.retrieval is None:
        problems.append(
            f"memory.recall_loss is {memory.recall_loss}, but documents do not say which memory answers: only "
            "data.retrieval does; leave it out"
        )
    return problems


def warm_up_warnings(recipe: Recipe) -> list[str]:
    """Return a warning line if the learning rate's warm-up is longer than the run; else an empty list.

    Args:
        recipe: the recipe.
    """
    steps, total = recipe.schedule.params.get("warmup_num_steps"), recipe.training.steps
    if not isinstance(steps, int) or steps <= total:
        return []
    return [
        f"schedule.params.warmup_num_steps is {steps:,}, and training.steps {total:,}: the learning rate never reaches "
        "optimizer.lr; lower the first, or raise the second"
    ]


def retrieval_warnings(recipe: Recipe, question_tokens: int) -> list[str]:
    """Return a warning line for each setting with which answers to generated questions say little about the memory.

    Args:
        recipe: the recipe.
        question_tokens: number of tokens of the longest question.
    """
    memory, warnings = recipe.memory, []
    if memory.mode != "hmt":
        return []
    if memory.interface == "paper":
        warnings.append(
            "memory.interface paper recalls by a segment's first tokens, the answer among them: right answers to "
            "data.retrieval then do not show that a fact was remembered; take interface adapted"
        )
    if memory.interface == "adapted" and memory.sensory_tokens < question_tokens:
        warnings.append(
            f"memory.sensory_tokens is {memory.sensory_tokens}, but questions take up to {question_tokens} tokens: "
            f"sensory tokens ask for older memories, and do not have the whole question; raise it to {question_tokens}"
        )
    longest = max(recipe.retrieval_segments)
    if longest > memory.cached_memories:
        warnings.append(
            f"evaluation.retrieval_segments: documents of {longest} segments are evaluated, but only the newest "
            f"{memory.cached_memories} memories are cached, so older facts cannot be found: raise "
            f"memory.cached_memories to {longest}"
        )
    return warnings


def check_positions(recipe: Recipe, config: PreTrainedConfig) -> list[str]:
    """Check that prompts, repeated (sensory) tokens and segment together fit into the backbone's maximum number of
    positions.

    Args:
        recipe: the recipe.
        config: configuration of the backbone.

    Returns:
        An error line if they do not fit; else an empty list.
    """
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
