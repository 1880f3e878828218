"""Read documents of any length into a model's cache, with a progress bar, and encode the prompts that follow them."""

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
    """Return a cache that has read the files given by --memory and --document; an empty one without them.

    Args:
        asked: the model and its tokenizer.
        options: options of `hmt-ds chat` or `generate`.

    Raises:
        ConversionError: a file cannot be read or is empty, or another model wrote the memory.
    """
    cache = SegmentCache()
    if options.memory is not None:
        cache = load_memory(options.memory, asked.model, asked.tokenizer)
    if options.document is not None:
        text = read_text(options.document)
        if not text.strip():
            raise ConversionError(f"--document: {options.document} is empty: name a file with text")
        read_ids(asked.model, cache, encode(asked.tokenizer, text, begins=cache.rows is None))
    cache.seen = 0  # it does not count as part of the sequences that follow
    return cache


def read_text(file: Path) -> str:
    """Return the content of a UTF-8 text file, without a byte order mark.

    Args:
        file: path of the file.

    Raises:
        ConversionError: the file cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{file} cannot be read as UTF-8 text ({error}): name a text file") from None


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, begins: bool) -> list[int]:
    """Return a text's token ids as training data would have them, but without a final EOS.

    Args:
        tokenizer: the tokenizer.
        text: the text.
        begins: whether the text begins a document; then it gets the tokenizer's BOS, if there is one.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=begins, verbose=False).input_ids
    if begins and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


@torch.no_grad()
def read_ids(model: HMTForCausalLM, cache: SegmentCache, ids: Sequence[int]) -> None:
    """Read the next token ids of a document into a cache, with a progress bar.

    Args:
        model: the model.
        cache: cache of one row; changed.
        ids: token ids that follow those already read.
    """
    tokens = torch.tensor([ids], device=model.device)
    with tqdm(total=len(ids), unit="token", unit_scale=True, desc="reading", leave=False, disable=None) as bar:
        for part in tokens.split(SEGMENTS * model.hmt.settings.segment_length, dim=1):
            model(part, past_key_values=cache, logits_to_keep=1)
            bar.update(part.shape[1])


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-pad rows of token ids to the length of the longest one.

    Args:
        rows: token ids of each row.
        pad: token id of the padding.
        device: device of the result.

    Returns:
        Token ids ``[batch, tokens]`` and attention mask ``[batch, tokens]``, 0 on pads.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
