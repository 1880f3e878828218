"""Options of a model's forward pass, with transformers' meaning: honoured, or refused in one line.

Shapes: b batch, t positions, v vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

# without an effect here: nothing is cached between calls, and causal models have no token types
WITHOUT_EFFECT = ("use_cache", "token_type_ids")


def check_ids(input_ids: Tensor | None) -> Tensor:
    """Refuse a call without token ids.

    Raises:
        ValueError: if there are none.
    """
    if input_ids is None or input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError("input_ids must be token ids of the shape [batch, tokens], with at least one token")
    return input_ids


def check_options(options: Mapping[str, object]) -> None:
    """Refuse options of the forward pass that would silently have no effect.

    Clients such as peft pass many options as None or False, which ask for nothing.

    Raises:
        ValueError: naming the options.
    """
    if options.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds cannot be read: segments and their sensory tokens are made from input_ids")
    asked = {name for name, value in options.items() if value is not None and value is not False}
    if refused := sorted(asked.difference(WITHOUT_EFFECT)):
        raise ValueError(f"a converted HMT does not take {', '.join(refused)}: it returns the loss and the logits only")


def check_mask(attention_mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return a mask of pads as bool, or None where it masks nothing.

    Raises:
        ValueError: if it is not a mask of positions.
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
    """Refuse positions other than the default ones, such as those of several documents packed into a row.

    Args:
        position_ids: ``[b or 1, t]``.
        real: ``[b, t]`` bool, False on pads, or None.
        shape: of the token ids.

    Raises:
        ValueError: if they are neither columns nor the numbers of the row's tokens.
    """
    if position_ids is None:
        return
    columns = torch.arange(shape[1], device=position_ids.device).expand(shape)
    tokens = columns if real is None else real.long().cumsum(dim=1) - 1
    counts = torch.ones_like(columns, dtype=torch.bool) if real is None else real
    found = position_ids.expand(shape)
    if not any(torch.equal(found[counts], default[counts]) for default in (columns, tokens)):
        raise ValueError("position_ids must be the default ones: positions are counted within a segment")


def first_position(logits_to_keep: int | Tensor, tokens: int) -> int:
    """Return the first position whose logits are asked for; 0 for a tensor of positions."""
    if isinstance(logits_to_keep, Tensor):
        return 0
    return slice(-logits_to_keep, None).indices(tokens)[0]


def select_logits(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Select the logits at a tensor's positions, as transformers does; with an int they are selected already.

    Args:
        logits: ``[b, t, v]``.
        logits_to_keep: positions, ``[n]`` for all rows or ``[b, n]`` for each; or ``[b, t]`` bool, which gives
            ``[n, v]``.
    """
    if not isinstance(logits_to_keep, Tensor):
        return logits
    if logits_to_keep.dtype == torch.bool and logits_to_keep.dim() == 2:
        return logits[logits_to_keep]
    if logits_to_keep.dim() == 2:
        return torch.take_along_dim(logits, logits_to_keep[..., None], dim=1)
    return logits[:, logits_to_keep]
