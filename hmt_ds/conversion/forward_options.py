"""Check the arguments of a converted model's forward pass; refuse those that would silently have no effect."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hmt_ds.inference.segment_cache import SegmentCache

# without an effect here: causal models have no token types, a cache knows what it has read, and generation with stop
# strings passes its tokenizer on to the forward pass
WITHOUT_EFFECT = ("token_type_ids", "cache_position", "tokenizer")


def check_ids(input_ids: Tensor | None) -> Tensor:
    """Return token ids ``[batch, tokens]`` unchanged, after checking that there are some and that they have two
    dimensions.

    Args:
        input_ids: the token ids that the model was called with.

    Raises:
        ValueError: there are no token ids, or they have another number of dimensions.
    """
    if input_ids is None or input_ids.dim() != 2 or input_ids.shape[1] == 0:
        found = "none" if input_ids is None else f"the shape {list(input_ids.shape)}"
        raise ValueError(
            f"input_ids must be token ids of the shape [batch, tokens], with at least one token; got {found}: pass the "
            "tokenizer's input_ids"
        )
    return input_ids


def check_options(options: Mapping[str, object]) -> None:
    """Refuse arguments of a converted model's forward pass that would silently have no effect.

    Arguments that are None or False pass: libraries such as peft pass many that way.

    Args:
        options: further keyword arguments of the forward pass, by name.

    Raises:
        ValueError: naming the arguments.
    """
    if options.get("inputs_embeds") is not None:
        raise ValueError(
            "inputs_embeds is not supported, because segments are made from token ids: pass input_ids instead"
        )
    asked = {name for name, value in options.items() if value is not None and value is not False}
    if refused := sorted(asked.difference(WITHOUT_EFFECT)):
        raise ValueError(
            f"a converted HMT does not take {', '.join(refused)}: it returns the loss and the logits only: omit them"
        )


def check_cache(cache: object, labels: Tensor | None) -> SegmentCache:
    """Return the cache with which a converted model continues a text; an empty one if ``cache`` is None.

    Args:
        cache: the argument ``past_key_values``.
        labels: the argument ``labels``; None without labels, which cannot be scored with a cache.

    Raises:
        ValueError: the cache is of another type, or there are labels besides a cache.
    """
    if cache is not None and not isinstance(cache, SegmentCache):
        raise ValueError(
            f"past_key_values is a {type(cache).__name__}, which cannot hold a memory: pass none, or one that this "
            "model returned"
        )
    if labels is not None:
        raise ValueError("labels cannot be scored behind past_key_values: pass the whole document, or no labels")
    return cache or SegmentCache()


def check_mask(attention_mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return an attention mask as bool, ``[batch, tokens]``, False on padding; None if nothing is masked.

    Args:
        attention_mask: ``[batch, tokens]``, 0 on padding.
        shape: shape of the token ids, ``[batch, tokens]``.

    Raises:
        ValueError: the mask has another shape than the token ids.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape != shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {list(shape)}, and 0 on pads; it has "
            f"{list(attention_mask.shape)}"
        )
    return None if bool(attention_mask.all()) else attention_mask.bool()


def check_positions(position_ids: Tensor | None, real: Tensor | None, shape: torch.Size) -> None:
    """Refuse position ids that are not 0, 1, 2, ... in each row, such as those of several documents packed into a row.

    Args:
        position_ids: ``[batch, tokens]`` or ``[1, tokens]``, counted over all columns or over the unpadded tokens of
            each row; None passes.
        real: ``[batch, tokens]`` bool, False on padding; None without padding.
        shape: shape of the token ids, ``[batch, tokens]``.

    Raises:
        ValueError: the ids number neither the columns of the batch nor the tokens of each row.
    """
    if position_ids is None:
        return
    columns = torch.arange(shape[1], device=position_ids.device).expand(shape)
    tokens = columns if real is None else real.long().cumsum(dim=1) - 1
    counts = torch.ones_like(columns, dtype=torch.bool) if real is None else real
    found = position_ids.expand(shape)
    if not any(torch.equal(found[counts], default[counts]) for default in (columns, tokens)):
        raise ValueError(
            "position_ids must be the default ones, because positions are counted within segments: leave them out"
        )


def first_position(logits_to_keep: int | Tensor, tokens: int) -> int:
    """Return the first position whose logits are returned; 0 if the positions are given by a tensor.

    Args:
        logits_to_keep: number of last positions whose logits are returned (0: all), or a tensor of positions.
        tokens: number of positions of the batch.
    """
    if isinstance(logits_to_keep, Tensor):
        return 0
    return slice(-logits_to_keep, None).indices(tokens)[0]


def select_logits(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Select logits at the positions in a tensor, as transformers does; return them unchanged if given a number.

    Args:
        logits: ``[batch, positions, vocabulary]``; already cut to the last positions if given a number.
        logits_to_keep: positions, ``[n]`` for all rows or ``[batch, n]`` for each; or a mask ``[batch, positions]``,
            which selects ``[n, vocabulary]``; or the number of last positions.
    """
    if not isinstance(logits_to_keep, Tensor):
        return logits
    if logits_to_keep.dtype == torch.bool and logits_to_keep.dim() == 2:
        return logits[logits_to_keep]
    if logits_to_keep.dim() == 2:
        return torch.take_along_dim(logits, logits_to_keep[..., None], dim=1)
    return logits[:, logits_to_keep]
