"""A Hugging Face causal language model with embedding, decoder and head as separate calls."""

from inspect import signature

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from hmt_ds.backbones.families import family_of
from hmt_ds.backbones.transformers_internals import sequences_in_rows
from hmt_ds.memory.segments import places_in_parts


class BackboneError(ValueError):
    """Raised for a model, or LoRA adapters, that cannot be used as a backbone; the message has one line per reason."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, up to 300 characters; a single word follows the error's type."""
    line = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, KeyError):  # looked up in transformers' tables of activations, rope types and models
        return f"{line} is unknown to transformers"
    return line if " " in line else f"{type(error).__name__} {line}".strip()


class CausalLM(nn.Module):
    """A ``transformers`` causal language model with embedding, decoder and head as three separate calls.

    Args:
        model: a causal language model of ``transformers``, or one pipeline stage of it.
        dim: width of the embeddings; needed for a pipeline stage without embeddings.
    """

    def __init__(self, model: PreTrainedModel, dim: int | None = None):
        super().__init__()
        # the embeddings' width is also that of the last hidden state; it may differ from hidden_size (OPT-350M)
        self.dim = dim or model.get_input_embeddings().embedding_dim
        self.model = model
        self.config = model.config
        cap = family_of(self.config).softcap
        if hasattr(self.config, "rescale_every"):
            # RWKV would divide its weights in place at the first evaluation, and multiply them when training goes on
            self.config.rescale_every = 0
        self.softcap: float | None = getattr(self.config, cap) if cap else None

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary: the number of logits at each position."""
        return self.config.get_text_config().vocab_size

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids as input embeddings of the decoder.

        Args:
            ids: ``[batch, positions]`` int64.

        Returns:
            ``[batch, positions, dim]``.
        """
        return self.model.get_input_embeddings()(ids)

    def decode(self, embeddings: Tensor, mask: Tensor | None = None, parts: Tensor | None = None) -> Tensor:
        """Run the decoder on embeddings, without the output head.

        Attention is causal; without a mask it can use flash attention kernels. Padding at the end of a row needs no
        mask: no earlier token attends to it.

        Args:
            embeddings: ``[batch, positions, dim]``.
            mask: ``[batch, positions]``, nonzero on real tokens, 0 on padding; None if there is no padding in front.
            parts: ``[batch, positions]``, number of the document that a position belongs to, never falling along a row.
                A position attends only to its own document, and position ids count from its start. None: one document
                per row.

        Returns:
            Last hidden states ``[batch, positions, dim]``.
        """
        positions = {} if parts is None else {"position_ids": places_in_parts(parts)}
        with sequences_in_rows(parts):
            hidden = self.model.base_model(
                inputs_embeds=embeddings,
                attention_mask=None if mask is None else mask.long(),
                use_cache=False,
                return_dict=True,
                **positions,
            ).last_hidden_state
        # Mamba's residuals are float32, and then its last hidden state is too, whatever type the head has
        wider = torch.finfo(hidden.dtype).bits > torch.finfo(embeddings.dtype).bits
        return hidden.to(embeddings.dtype) if wider else hidden

    def extend(
        self, embeddings: Tensor, past: Cache, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Run the decoder on new positions after those in a key-value cache, and append them to the cache in place.

        Args:
            embeddings: ``[batch, new, dim]``, of the new positions.
            past: cache with keys and values of the earlier positions.
            mask: ``[batch, past + new]`` bool, False on padding, which is in front; None without padding.
            positions: ``[batch, new]`` index of each new token in its row, padding not counted; None without padding.
                Ignored by models whose forward pass takes no positions: they derive them from the mask.

        Returns:
            Last hidden states ``[batch, new, dim]`` of the new positions.
        """
        takes_positions = "position_ids" in signature(self.model.base_model.forward).parameters
        with sequences_in_rows():
            output = self.model.base_model(
                inputs_embeds=embeddings,
                attention_mask=None if mask is None else mask.long(),
                past_key_values=past,
                use_cache=True,
                return_dict=True,
                **({"position_ids": positions} if takes_positions and positions is not None else {}),
            )
        return output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head, with its bias and logit cap, to hidden states.

        Args:
            hidden: ``[batch, positions, dim]``.

        Returns:
            Logits ``[batch, positions, vocabulary]``.
        """
        logits = self.model.get_output_embeddings()(hidden)
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits
