"""From text to a cache: read a document of any length with progress, and encode prompts that follow it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.generation.memory_file import load_memory
from hmt_ds.generation.model import Asked
from hmt_ds.generation.options import ChatOptions
from hmt_ds.inference.segment_cache import SegmentCache

SEGMENTS = 64  # read between two movements of the progress bar


def read_first(asked: Asked, options: ChatOptions) -> SegmentCache:
    """Return a cache that has read the memory file and the document, if they are given; otherwise an empty one.

    Raises:
        ConversionError: if a file cannot be read, is empty, or is not of this model.
    """
    cache = SegmentCache()
    if options.memory is not None:
        cache = load_memory(options.memory, asked.model, asked.tokenizer)
    if options.document is not None:
        text = read_text(options.document)
        if not text.strip():
            raise ConversionError(f"--document: {options.document} is empty")
        read_ids(asked.model, cache, encode(asked.tokenizer, text, begins=cache.rows is None))
    cache.seen = 0  # it does not count as part of the sequences that follow
    return cache


def read_text(file: Path) -> str:
    """Read a text file.

    Raises:
        ConversionError: if it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{file} cannot be read as text: {error}") from None


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, begins: bool) -> list[int]:
    """Return the token ids of a text, as in training.

    Args:
        tokenizer: a tokenizer; one that ends every text with EOS does not end this one, which goes on.
        text: the text.
        begins: whether the text begins a document, with the tokenizer's BOS if it has one.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=begins, verbose=False).input_ids
    if begins and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


@torch.no_grad()
def read_ids(model: HMTForCausalLM, cache: SegmentCache, ids: Sequence[int]) -> None:
    """Read the tokens of one document behind a cache of one row, with a progress bar on a terminal."""
    tokens = torch.tensor([ids], device=model.device)
    with tqdm(total=len(ids), unit="token", unit_scale=True, desc="reading", leave=False, disable=None) as bar:
        for part in tokens.split(SEGMENTS * model.hmt.settings.segment_length, dim=1):
            model(part, past_key_values=cache, logits_to_keep=1)
            bar.update(part.shape[1])


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows of different lengths as a batch ``[b, t]`` with pads in front, and its attention mask ``[b, t]``."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
