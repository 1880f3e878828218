"""HMT-pytorch on the same work, from a clone that the user has: what its authors' code takes on this device."""

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
from typing import Any

import torch
from torch import nn

from hmt_ds.backbones import build_model
from hmt_ds.memory import MemorySettings

SOURCE = Path("modeling_rmt/language_modeling.py")
NEEDS = {"sklearn": "scikit-learn", "accelerate": "accelerate"}  # what it imports, and how that is installed
SAVED_SEGMENTS = 5  # its own default of --num_seg_save: segments whose logits and hidden states it keeps
WARMUP = 1


@dataclass(frozen=True)
class Work:
    """What both read.

    Attributes:
        source: the backbone's, as in a recipe.
        settings: of the memory. Its ``segment_length`` counts fresh tokens, as ``segment_size`` of the reference's
            forward pass does; on the reference's command line prompts and sensory tokens are counted too.
        batch: rows.
        segments: of a window.
        seed: of random weights and tokens.
    """

    source: str | dict[str, Any]
    settings: MemorySettings
    batch: int
    segments: int
    seed: int


def reference_problems(folder: Path, config: Any, settings: MemorySettings, precision: str, train: str) -> list[str]:
    """Why the reference cannot do the same work: a line for each reason.

    Args:
        folder: the clone.
        config: of the backbone.
        settings: the recipe's section ``memory``.
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
        wrong.append("HMT-pytorch needs a GPU, and there is none here")
    if settings.mode != "hmt" or settings.memory_tokens != 1:
        wrong.append("compared are memory.mode hmt and memory.memory_tokens 1 alone")
    if precision != "bf16" or train != "whole":
        wrong.append("compared are model.precision bf16 and model.train whole alone")
    if width_in_config(config) is None:
        wrong.append(f"HMT-pytorch takes no {config.model_type}: it looks for hidden_size in the configuration")
    return [f"--reference: {line}" for line in wrong]


def width_in_config(config: Any) -> int | None:
    """Where the reference looks for the width of the embeddings."""
    name = "word_embed_proj_dim" if config.model_type == "opt" else "hidden_size"
    return getattr(config, name, None)


def run_reference(folder: Path, work: Work, device: torch.device, steps: int) -> dict[str, Any]:
    """Forward and backward of some windows by the reference; that its memory does not suffice is a result too."""
    cuda = None if device.type == "cpu" else torch.get_device_module(device)
    standing = cuda.memory_allocated() if cuda else 0
    if cuda:
        cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    try:
        timed_passes(build_reference(folder, work, device), work, device, WARMUP + steps, seconds)
    except torch.OutOfMemoryError:
        # (what is left of it hangs at the exception, which is gone behind this block)
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
    """The reference's model, as its training script makes it, in bfloat16."""
    settings = work.settings
    backbone = build_model(work.source, dtype=torch.bfloat16, seed=work.seed, device=device).model
    module = load(folder)
    with device:  # the reference makes tensors without saying where, and multiplies them with the backbone's
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


def load(folder: Path) -> Any:
    """The reference's module. Its constructor loads scores from the hub that training does not use: a stand-in."""
    with stand_in("evaluate", load=lambda name: None):
        sys.path.insert(0, str(folder.resolve()))
        try:
            return importlib.import_module(".".join(SOURCE.with_suffix("").parts))
        finally:
            sys.path.pop(0)


@contextmanager
def stand_in(name: str, **members: Any) -> Iterator[None]:
    """A module of that name with these members, for a while."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # libraries that look for optional packages ask for it
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
    """Forward and backward on random tokens; seconds of each pass are appended."""
    length = work.segments * work.settings.segment_length
    generator = torch.Generator().manual_seed(work.seed)
    vocabulary = model.memory_cell.model.config.vocab_size  # type: ignore[union-attr]
    for _ in range(passes):
        ids = torch.randint(vocabulary, (work.batch, length), generator=generator)  # type: ignore[arg-type]
        wait_for(device)
        began = time.perf_counter()
        output, _ = model(
            input_ids=ids,
            labels=ids,
            attention_mask=torch.ones_like(ids),
            segment_size=work.settings.segment_length,
            sum_fraction=work.settings.summary_fraction,
        )
        output.loss.backward()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
        del output
        model.zero_grad()


def wait_for(device: torch.device) -> None:
    """Until the device has done its work."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
