"""Generation with memory: segments are read, the last one is continued by transformers' own ``generate``."""

from typing import Any, cast

import torch
from torch import Tensor

from hmt_ds.backbones.families import family_of
from hmt_ds.backbones.model import CausalLM
from hmt_ds.memory.bptt import read_window
from hmt_ds.memory.cell import HMT
from hmt_ds.memory.segments import split_document
from hmt_ds.memory.state import MemoryState


@torch.no_grad()
def generate(model: HMT, input_ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """Continue documents of equal length; greedily, unless the options say otherwise.

    All segments but the last are read whole. The last is read as [P | sensory | segment], without its trailing prompt,
    and continued there by at most L tokens; for more, what was written is read as segments in its turn.

    Summaries read round(L / 2) tokens, as in training. HMT-pytorch trains so too, but generates with L // 2: at some
    odd segment lengths, such as 7, it continues otherwise than this function.

    Args:
        model: in evaluation mode, unsharded.
        input_ids: ``[b, tokens]``, at least one token.
        max_new_tokens: how many tokens to add at most; fewer where every row ended.
        options: for transformers' ``generate`` (``eos_token_id``, ``do_sample`` and others).

    Returns:
        The new tokens, ``[b, at most max_new_tokens]``.
    """
    settings, tokens, read = model.settings, input_ids, 0
    state = MemoryState.empty(
        len(input_ids),
        settings.memory_tokens,
        model.backbone.dim,
        settings.sensory_tokens,
        dtype=next(model.parameters()).dtype,
        device=input_ids.device,
    )
    wanted = input_ids.shape[1] + max_new_tokens
    ends, pad = ends_of(model, options)
    ended = torch.zeros(len(input_ids), 1, dtype=torch.bool, device=input_ids.device)
    while tokens.shape[1] < wanted:
        closed = (tokens.shape[1] - 1) // settings.segment_length * settings.segment_length
        if closed > read:
            window = split_document(tokens[:, read:closed], settings.segment_length, goes_on=read > 0)
            *_, (_, state) = read_window(model, settings, window, state)
            read = closed
        room = min(
            wanted - tokens.shape[1], settings.segment_length, places_left(model, tokens.shape[1] - closed, closed > 0)
        )
        new = continue_segment(model, tokens[:, closed:], state, closed > 0, max_new_tokens=room, **options)
        new = new.masked_fill(ended, pad)
        ended |= torch.isin(new, ends).any(dim=1, keepdim=True)
        tokens = torch.cat([tokens, new], dim=1)
        if new.shape[1] < room or ended.all():
            break
    return tokens[:, input_ids.shape[1] :]


def places_left(model: HMT, open_tokens: int, goes_on: bool) -> int:
    """How many tokens can follow so many of a segment: at least one, for a whole segment fits with its prompts."""
    config, settings = cast(CausalLM, model.backbone).config, model.settings
    if not family_of(config).hard_positions:
        return settings.segment_length
    prompt = settings.sink_tokens + settings.prompt_tokens()
    sensory = settings.sensory_tokens if goes_on else 0
    return config.max_position_embeddings + 1 - prompt - sensory - open_tokens  # the last is not read


def ends_of(model: HMT, options: dict[str, Any]) -> tuple[Tensor, int]:
    """The ids that end a row ``[any number]``, and what stands behind one, as in transformers' ``generate``."""
    config = cast(CausalLM, model.backbone).model.generation_config
    end, pad = (options.get(name, getattr(config, name)) for name in ("eos_token_id", "pad_token_id"))
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    if pad is None:
        pad = next(iter(ends), 0)
    return torch.tensor(ends, dtype=torch.long, device=next(model.parameters()).device), pad


def continue_segment(model: HMT, segment_ids: Tensor, state: MemoryState, goes_on: bool, **options: Any) -> Tensor:
    """Continue the open segment ``[b, 1 to L]``; returns the new tokens ``[b, n]``."""
    window = split_document(segment_ids, segment_ids.shape[1], goes_on=goes_on)
    segment = window.segment(0, state.tail, model.settings)
    length = int(segment.lengths[0])  # a document's first segment has no sensory tokens, but pads behind
    tokens = model.backbone.embed(segment.tokens[:, :length])
    asks = model.settings.summarises and state.memories.shape[1] > 0
    query = model.read_ahead(window.summary(0, 1, state.tail, model.settings)) if asks else None
    prompt, _ = model.memory_prompt(state.memories, state.valid, model.settings.mode, query)
    embeddings = torch.cat([model.around(segment, prompt)[0].to(tokens.dtype), tokens], dim=1)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
    causal_lm = cast(CausalLM, model.backbone).model
    return causal_lm.generate(inputs_embeds=embeddings, attention_mask=mask, **{"do_sample": False} | options)
