"""A document that was read, as a file: its memory, the tokens of its open segment, and what model read it.

Shapes: c cached memories, m memory tokens, d embedding width, k sensory tokens, w tokens of the open segment.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.data import describe_tokenizer
from hmt_ds.inference.rows import Rows
from hmt_ds.inference.segment_cache import SegmentCache
from hmt_ds.memory.state import MemoryState

FORMAT = "hmt_ds memory 1"
TENSORS = ("memories", "valid", "tail", "tokens")
PARTS = {"weights": "the model's weights", "tokenizer": "the tokenizer"}


def save_memory(cache: SegmentCache, file: Path, model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> int:
    """Write what one row of a cache remembers; return the number of bytes.

    The file has ``memories [c, m, d]``, ``valid [c]``, ``tail [k]`` and ``tokens [w]``, and as metadata the settings of
    the memory, the hashes of weights and tokenizer, and the number of closed segments.

    Raises:
        ConversionError: if the file cannot be written.
    """
    assert cache.rows is not None
    state, length = cache.rows.state, cache.rows.lengths[0]
    tensors = dict(zip(TENSORS, (state.memories, state.valid, state.tail, cache.rows.tokens[:, :length]), strict=True))
    about = identity(model, tokenizer) | {"format": FORMAT, "closed": str(cache.rows.closed[0])}
    partial = file.with_name(f".{file.name}.partial")
    try:
        save_file({name: tensor[0].contiguous().cpu() for name, tensor in tensors.items()}, partial, metadata=about)
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ConversionError(f"{file} cannot be written: {error}") from None
    return file.stat().st_size


def load_memory(file: Path, model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> SegmentCache:
    """Read a memory file into a cache of one row, to go on behind what was read.

    Raises:
        ConversionError: if the file is damaged, or was written by another model, with what differs.
    """
    try:
        with safe_open(file, framework="pt", device=str(model.device)) as saved:
            about = saved.metadata() or {}
            if about.get("format") != FORMAT:
                raise ConversionError(f"{file} is no memory file: --save-memory writes them")
            check_identity(file, about, identity(model, tokenizer))
            memories, valid, tail, tokens = (saved.get_tensor(name)[None] for name in TENSORS)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{file} is no memory file, or damaged: {error}") from None
    cache = SegmentCache()
    state = MemoryState(memories, valid, tail)
    cache.rows = Rows(state, tokens, (tokens.shape[1],), (int(about["closed"]),))
    return cache


def identity(model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what a memory depends on, as text by name: settings of the memory, hashes of weights and tokenizer."""
    settings = {f"memory.{key}": json.dumps(value) for key, value in asdict(model.hmt.settings).items()}
    return settings | {"weights": hash_weights(model), "tokenizer": describe_tokenizer(tokenizer)}


def check_identity(file: Path, stored: dict[str, str], own: dict[str, str]) -> None:
    """Refuse a memory of another model.

    Raises:
        ConversionError: naming everything that differs, with both values.
    """
    differ = [name for name in own if stored.get(name) != own[name]]
    if differ[:-1]:
        differ.remove("weights") if "weights" in differ else None  # with other settings they differ in any case
    if differ:
        values = (f"{PARTS.get(name, name)}: {stored.get(name)} there, {own[name]} here" for name in differ)
        raise ConversionError(f"{file} was written by another model ({'; '.join(values)}): read the document again")


def hash_weights(model: HMTForCausalLM) -> str:
    """Return the SHA-256 of all weights with their names and types, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.hmt.named_parameters()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
