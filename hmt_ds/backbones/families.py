"""What differs between model families, as far as the memory has to know. To add a family: one row and one test.

Most of what differs is the model's own business: it happens between ``inputs_embeds`` and ``last_hidden_state``:
embedding scales, projections to another width, sliding windows, rotary or learned positions.
"""

from typing import Any, NamedTuple


class Family(NamedTuple):
    """One row of the table.

    Attributes:
        softcap: name of the configuration's final logit cap c; logits become c * tanh(logits / c).
        hard_positions: whether positions beyond the configuration's limit do not exist at all (learned embeddings).
    """

    softcap: str | None = None
    hard_positions: bool = False


GENERAL = Family()  # any other model; hmt_ds.backbones.probe makes sure that it fits

FAMILIES: dict[str, Family] = {
    "llama": Family(),  # also SmolLM, Yi, OpenLlama and most others
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma2": Family(softcap="final_logit_softcapping"),
    "gemma3_text": Family(softcap="final_logit_softcapping"),
    "phi3": Family(),
    "smollm3": Family(),
    "opt": Family(hard_positions=True),
    "gpt2": Family(hard_positions=True),
    "gpt_neox": Family(),
}


def family_of(config: Any) -> Family:
    """The row of a configuration's model type, or the general one."""
    return FAMILIES.get(config.model_type, GENERAL)
