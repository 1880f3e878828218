"""Settings of LoRA adapters: the recipe's section ``model.lora``. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Quantize = Literal["none", "nf4", "fp4"]


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
    quantize: Quantize = "none"
    """How the frozen weights of linear layers are stored. none: in model.precision; nf4: in 4 bits with levels for
    normally distributed weights (QLoRA); fp4: in 4-bit floats. Both need bitsandbytes; the head is left out."""
