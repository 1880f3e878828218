"""A Hugging Face causal language model, as the memory sees it.

Shapes: b batch, t positions, d embedding width, v vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import masking_utils

from hmt_ds.backbones.families import family_of


class BackboneError(ValueError):
    """A model that cannot be a backbone; the message says what it lacks."""


class CausalLM(nn.Module):
    """Embeds, decodes and scores with the model's own modules.

    Args:
        model: a ``transformers`` causal language model.
        dim: width of the embeddings, for a stage that has none.
    """

    def __init__(self, model: Any, dim: int | None = None):
        super().__init__()
        # also the width of the last hidden state; not always the hidden size (OPT-350M)
        self.dim = dim or model.get_input_embeddings().embedding_dim
        self.model = model
        self.config = model.config
        cap = family_of(self.config).softcap
        self.softcap: float | None = getattr(self.config, cap) if cap else None

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return self.config.get_text_config().vocab_size

    def embed(self, ids: Tensor) -> Tensor:
        """``[b, t]`` -> ``[b, t, d]``."""
        return self.model.get_input_embeddings()(ids)

    def decode(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[b, t, d]`` -> last hidden state ``[b, t, d]``.

        Without a mask attention is causal and nothing else, which lets the fast kernels run. Pads at the end need
        none.
        """
        with nothing_packed():
            return self.model.base_model(
                inputs_embeds=embeddings,
                attention_mask=None if mask is None else mask.long(),
                use_cache=False,
                return_dict=True,
            ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """``[b, t, d]`` -> ``[b, t, v]``, with the model's own head, bias and cap."""
        logits = self.model.get_output_embeddings()(hidden)
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@contextmanager
def nothing_packed() -> Iterator[None]:
    """Spare transformers a search: a row holds one sequence, and without a mask it needs none.

    Positions that begin anew would be packed sequences; to look for them stalls a GPU at every call. And while a CUDA
    graph is captured transformers makes whole masks, for graphs that would be replayed on other shapes.
    """
    found = {name: getattr(masking_utils, name) for name in ("find_packed_sequence_indices", "is_tracing")}
    masking_utils.find_packed_sequence_indices = lambda positions: None
    masking_utils.is_tracing = lambda tensor=None: False
    try:
        yield
    finally:
        for name, function in found.items():
            setattr(masking_utils, name, function)
