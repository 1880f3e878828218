"""Settings of LoRA adapters: the recipe's section ``model.lora``. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraSettings:
    """Settings of low-rank adapters (LoRA), which peft adds to the layers of the backbone."""

    rank: int = 8
    """Rank of each adapter (r in the LoRA paper): a layer of m inputs and n outputs gets rank * (m + n) weights."""
    alpha: float = 16
    """Scale of the adapters' output, which is multiplied by alpha / rank: 16 with rank 8 doubles it."""
    dropout: float = 0.0
    """Dropout probability of the adapters' input, from 0 (no dropout) to below 1."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get an adapter, as a list or a regular expression; all-linear: every linear layer
    except the head."""
