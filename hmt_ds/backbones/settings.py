"""Settings of LoRA adapters: the recipe's section ``model.lora``. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraSettings:
    """Settings of low-rank adapters (LoRA), which peft adds to the backbone."""

    rank: int = 8
    """Rank of each adapter (r in the LoRA paper)."""
    alpha: float = 16
    """Scale of the adapters' output: it is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability of the adapters' input."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get an adapter; all-linear for every linear layer except the head."""
