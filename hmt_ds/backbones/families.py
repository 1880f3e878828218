"""Table of model families that differ from a Llama-like model in what a memory around them needs.

A new family needs one row and one test. Most differences need no entry, because they lie between ``inputs_embeds`` and
``last_hidden_state``, inside the model: embedding scales, projections to another width, sliding windows, rotary or
learned positions.
"""

from typing import NamedTuple

from transformers import PreTrainedConfig


class Family(NamedTuple):
    """How one model family differs from a plain Llama-like model: a row of the table ``FAMILIES``.

    Attributes:
        softcap: name of the configuration's key for the final logit cap c; logits become c * tanh(logits / c). None: no
            cap.
        hard_positions: whether positions beyond the configured length fail (learned position embeddings).
        packs: whether several documents in one row can be kept apart by position ids, as ``data.pack`` needs.
    """

    softcap: str | None = None
    hard_positions: bool = False
    packs: bool = True


GENERAL = Family()  # for any other model, after hmt_ds.backbones.probe has checked that it fits

FAMILIES: dict[str, Family] = {
    "llama": Family(),  # also SmolLM, Yi, OpenLlama and most others
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma2": Family(softcap="final_logit_softcapping"),
    "gemma3_text": Family(softcap="final_logit_softcapping"),
    "phi3": Family(),
    "smollm3": Family(),
    "opt": Family(hard_positions=True, packs=False),  # its masks do not see the positions
    "gpt2": Family(hard_positions=True),
    "gpt_neox": Family(),
}


def family_of(config: PreTrainedConfig) -> Family:
    """Return how a model's family differs from a Llama-like one; for an unlisted family, a row without differences.

    Args:
        config: the model's configuration.
    """
    return FAMILIES.get(config.model_type, GENERAL)
