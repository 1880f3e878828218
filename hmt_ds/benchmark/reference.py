"""Benchmark HMT-pytorch, the HMT paper's code, from the user's clone of it, on the same work as `hmt-ds bench`."""

import copy
import gc
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import torch
from torch import nn
from transformers import PretrainedConfig

from hmt_ds.backbones import build_model
from hmt_ds.memory import MemorySettings

SOURCE = Path("modeling_rmt/language_modeling.py")
NEEDS = {"sklearn": "scikit-learn", "accelerate": "accelerate"}  # modules it imports, and their packages
SAVED_SEGMENTS = 5  # its default of --num_seg_save: segments whose logits and hidden states it keeps
WARMUP = 1


@dataclass(frozen=True)
class Work:
    """The work that hmt_ds and HMT-pytorch both run in a comparison.

    Attributes:
        source: the recipe's ``model.source``.
        settings: settings of the memory. ``segment_length`` does not count prompts and sensory tokens (those repeated
            from the previous segment), like ``segment_size`` in HMT-pytorch's forward pass; HMT-pytorch's command-line
            option ``segment_length`` counts both.
        batch: rows of a batch.
        segments: number of segments of each row.
        seed: seed of random weights and tokens.
    """

    source: str | dict[str, Any]
    settings: MemorySettings
    batch: int
    segments: int
    seed: int


class ReferenceResults(TypedDict):
    """Measurements of HMT-pytorch; None for numbers that are unknown on CPUs or after running out of memory.

    Attributes:
        out_of_memory: whether HMT-pytorch ran out of memory.
        seconds: duration of each timed forward and backward pass.
        tokens_per_second_per_gpu: tokens read per second, without those repeated from the previous segment.
        peak_bytes: peak allocated bytes, without those allocated before.
        standing_before_bytes: bytes allocated before HMT-pytorch was built.
        segment_length_option_tokens: value of HMT-pytorch's command-line option for segments of the same length.
    """

    out_of_memory: bool
    seconds: list[float]
    tokens_per_second_per_gpu: float | None
    peak_bytes: int | None
    standing_before_bytes: int
    segment_length_option_tokens: int


def reference_problems(
    folder: Path, config: PretrainedConfig, settings: MemorySettings, precision: str, train: str
) -> list[str]:
    """Return an error line for each reason why HMT-pytorch cannot run the work of a recipe; an empty list if it can.

    Args:
        folder: clone of HMT-pytorch.
        config: configuration of the backbone.
        settings: settings of the memory.
        precision: the recipe's ``model.precision``.
        train: the recipe's ``model.train``.
    """
    wrong = []
    if not (folder / SOURCE).is_file():
        wrong.append(f"{folder} has no {SOURCE}: give a clone of HMT-pytorch")
    wrong += [
        f"HMT-pytorch needs {name}, which is not installed here: pip install {package}"
        for name, package in NEEDS.items()
        if importlib.util.find_spec(name) is None
    ]
    if not torch.cuda.is_available():
        wrong.append("HMT-pytorch needs a GPU, and this machine has none: leave --reference out")
    if settings.mode != "hmt" or settings.memory_tokens != 1:
        wrong.append(
            f"memory.mode is {settings.mode} and memory.memory_tokens {settings.memory_tokens}: only hmt with 1 can be "
            "compared; set these, or leave --reference out"
        )
    if precision != "bf16" or train != "whole":
        wrong.append(
            f"model.precision is {precision} and model.train {train}: only bf16 with whole can be compared; set these, "
            "or leave --reference out"
        )
    if width_in_config(config) is None:
        wrong.append(
            f"HMT-pytorch does not support {config.model_type}: it needs hidden_size in the configuration; leave "
            "--reference out"
        )
    return [f"--reference: {line}" for line in wrong]


def width_in_config(config: PretrainedConfig) -> int | None:
    """Return the embedding width from the configuration key that HMT-pytorch reads; None if there is no such key."""
    name = "word_embed_proj_dim" if config.model_type == "opt" else "hidden_size"
    return getattr(config, name, None)


def run_reference(folder: Path, work: Work, device: torch.device, steps: int) -> ReferenceResults:
    """Time forward and backward passes of HMT-pytorch. Running out of memory is a result, not an error.

    Args:
        folder: clone of HMT-pytorch.
        work: the work to run.
        device: device to run on.
        steps: number of timed passes.
    """
    cuda = None if device.type == "cpu" else torch.get_device_module(device)
    standing = cuda.memory_allocated() if cuda else 0
    if cuda:
        cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    try:
        timed_passes(build_reference(folder, work, device), work, device, WARMUP + steps, seconds)
    except torch.OutOfMemoryError:
        # its tensors hang on the exception's traceback, which is gone after this block
        seconds = []
    gc.collect()
    tokens = work.batch * work.segments * work.settings.segment_length
    median = statistics.median(seconds[WARMUP:]) if seconds else None
    return {
        "out_of_memory": not seconds,
        "seconds": seconds[WARMUP:],
        "tokens_per_second_per_gpu": tokens / median if median else None,
        "peak_bytes": cuda.max_memory_allocated() - standing if cuda else None,
        "standing_before_bytes": standing,
        "segment_length_option_tokens": work.settings.positions,
    }


def build_reference(folder: Path, work: Work, device: torch.device) -> nn.Module:
    """Build HMT-pytorch's model in bfloat16, as its training script does.

    Args:
        folder: clone of HMT-pytorch.
        work: the work to run, with the model and the memory's settings.
        device: device to build on.
    """
    settings = work.settings
    backbone = build_model(work.source, dtype=torch.bfloat16, seed=work.seed, device=device).model
    module = load(folder)
    with device:  # the reference creates tensors on the default device and multiplies them with the backbone's
        cell = module.MemoryCell(backbone, num_mem_tokens=settings.memory_tokens, num_prepend=settings.sensory_tokens)
        width = backbone.get_input_embeddings().embedding_dim
        model = module.RecurrentWrapper(
            cell,
            emb=copy.deepcopy(backbone.get_input_embeddings()),
            word_emb_dim=width,
            hidden_dim=settings.recall_width(width),
            ltm_context=settings.cached_memories,
            segment_size=settings.segment_length,
            max_n_segments=work.segments,
            mask_size=settings.segment_length,
            n_cell_out=SAVED_SEGMENTS,
        )
    return model.to(device, torch.bfloat16).train()


def load(folder: Path) -> Any:  # a module that is not known to the type checker
    """Import HMT-pytorch's model code from a clone, without its dependency ``evaluate``, which would download metrics.

    Args:
        folder: clone of HMT-pytorch.

    Returns:
        The imported module.
    """
    with fake_module("evaluate", load=lambda name: None):
        sys.path.insert(0, str(folder.resolve()))
        try:
            return importlib.import_module(".".join(SOURCE.with_suffix("").parts))
        finally:
            sys.path.pop(0)


@contextmanager
def fake_module(name: str, **members: object) -> Iterator[None]:
    """Replace a module in ``sys.modules`` by one with the given members, for the ``with`` block.

    Args:
        name: name of the module.
        members: attributes of the replacement.
    """
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # libraries that look for optional packages read it
    vars(module).update(members)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def timed_passes(model: nn.Module, work: Work, device: torch.device, passes: int, seconds: list[float]) -> None:
    """Run forward and backward passes of HMT-pytorch on random tokens, and time them.

    Args:
        model: HMT-pytorch's model.
        work: what one pass runs.
        device: device to run on.
        passes: number of passes.
        seconds: list to which the duration of each pass is appended.
    """
    length = work.segments * work.settings.segment_length
    generator = torch.Generator().manual_seed(work.seed)
    vocabulary = model.memory_cell.model.config.vocab_size  # type: ignore[union-attr]
    for _ in range(passes):
        ids = torch.randint(vocabulary, (work.batch, length), generator=generator)  # type: ignore[arg-type]
        synchronize(device)
        began = time.perf_counter()
        output, _ = model(
            input_ids=ids,
            labels=ids,
            attention_mask=torch.ones_like(ids),
            segment_size=work.settings.segment_length,
            sum_fraction=work.settings.summary_fraction,
        )
        output.loss.backward()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
        del output
        model.zero_grad()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
