"""A Hugging Face causal language model, as the memory sees it.

Shapes: b batch, t positions, d embedding width, v vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hmt_ds.backbones.families import family_of


class BackboneError(ValueError):
    """A model that cannot be a backbone; the message says what it lacks."""


class CausalLM(nn.Module):
    """Embeds, decodes and scores with the model's own modules.

    Args:
        model: a ``transformers`` causal language model.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.config = model.config
        cap = family_of(self.config).softcap
        self.softcap: float | None = getattr(self.config, cap) if cap else None

    @property
    def dim(self) -> int:
        """Width of the embeddings, and of the last hidden state. Not always the hidden size (OPT-350M)."""
        return self.model.get_input_embeddings().embedding_dim

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
        if mask is not None:
            mask = mask.long()
        return self.model.base_model(
            inputs_embeds=embeddings, attention_mask=mask, use_cache=False, return_dict=True
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """``[b, t, d]`` -> ``[b, t, v]``, with the model's own head, bias and cap."""
        logits = self.model.get_output_embeddings()(hidden)
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits
