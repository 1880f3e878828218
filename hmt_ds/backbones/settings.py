"""Settings of LoRA adapters: the recipe's section ``model.lora``. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters, made by peft."""

    rank: int = 8
    """r: rank of each adapter."""
    alpha: float = 16
    """Adapters are scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability in front of the adapters."""
    target_modules: str | list[str] = "all-linear"
    """Names of linear layers, or all-linear for every linear layer except the head."""
