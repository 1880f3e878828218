"""Memory files: a document's memory, the tokens of its last segment, and hashes of the model that read the document.

Shapes: c cached memories, m memory tokens, d embedding width, k sensory tokens (the last ones before the segment), w
tokens of the last segment.
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
    """Write the memory of a document that a cache has read to a safetensors file.

    Its tensors are ``memories [cached, memory tokens, dim]``, ``valid [cached]``, ``tail [sensory tokens]`` (the last
    ids before the last segment) and ``tokens [width]`` (ids of the last segment, whose memory is not written yet). Its
    metadata has the memory settings, hashes of weights and tokenizer, and the number of segments before ``tokens``.

    Args:
        cache: cache of one row.
        file: the file to write.
        model: the model that has read the document.
        tokenizer: the model's tokenizer.

    Returns:
        Size of the file in bytes.

    Raises:
        ConversionError: the file cannot be written.
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
        raise ConversionError(
            f"{file} cannot be written ({error}): name a file on a disk that has space and that you may write to"
        ) from None
    return file.stat().st_size


def load_memory(file: Path, model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> SegmentCache:
    """Load a memory file into a cache of one row, so that reading can continue where the saved document ended.

    Args:
        file: a file that :func:`save_memory` wrote.
        model: the model that will continue reading.
        tokenizer: the model's tokenizer.

    Raises:
        ConversionError: the file is damaged, or was written with other weights, tokenizer or memory settings.
    """
    try:
        with safe_open(file, framework="pt", device=str(model.device)) as saved:
            about = saved.metadata() or {}
            if about.get("format") != FORMAT:
                raise ConversionError(f"{file} is not a memory file: name a file that --save-memory wrote")
            check_identity(file, about, identity(model, tokenizer))
            memories, valid, tail, tokens = (saved.get_tensor(name)[None] for name in TENSORS)
    except (OSError, SafetensorError) as error:
        raise ConversionError(
            f"{file} is not a memory file, or is damaged ({error}): name a file that --save-memory wrote"
        ) from None
    cache = SegmentCache()
    state = MemoryState(memories, valid, tail)
    cache.rows = Rows(state, tokens, (tokens.shape[1],), (int(about["closed"]),))
    return cache


def identity(model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what a saved memory depends on, by name: memory settings (JSON), SHA-256 of weights and of the tokenizer.

    Args:
        model: the model.
        tokenizer: the model's tokenizer.
    """
    settings = {f"memory.{key}": json.dumps(value) for key, value in asdict(model.hmt.settings).items()}
    return settings | {"weights": hash_weights(model), "tokenizer": describe_tokenizer(tokenizer)}


def check_identity(file: Path, stored: dict[str, str], own: dict[str, str]) -> None:
    """Check that a memory file was written by the same model, tokenizer and memory settings.

    Args:
        file: the memory file.
        stored: settings and hashes in the file, by name.
        own: settings and hashes of the loaded model, by name.

    Raises:
        ConversionError: something differs; the message has every difference with both values.
    """
    differ = [name for name in own if stored.get(name) != own[name]]
    if differ[:-1]:
        differ.remove("weights") if "weights" in differ else None  # with other settings they differ in any case
    if differ:
        values = (f"{PARTS.get(name, name)}: {stored.get(name)} there, {own[name]} here" for name in differ)
        raise ConversionError(
            f"{file} was written by another model ({'; '.join(values)}): load that "
            "model, or read the document with this one"
        )


def hash_weights(model: HMTForCausalLM) -> str:
    """Return the SHA-256 (hexadecimal) of all weights of a model with their names and dtypes, equal on every device.

    Args:
        model: the model.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.hmt.named_parameters()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
