"""Count the parameters and other sizes of a model on the meta device, which has shapes but no weights."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from hmt_ds.backbones import CausalLM, LoraSettings, select_trainable
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.backbones.quantize import linear_layers
from hmt_ds.memory import HMT, MemorySettings


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a backbone and of the memory around it.

    Attributes:
        parameters: number of parameters, the memory modules' included.
        trained: number of trained parameters.
        layer: number of parameters of one decoder layer.
        layers: number of decoder layers.
        weights: number of weight tensors.
        hidden_size: width of the hidden states.
        intermediate_size: width of the MLP.
        vocabulary: number of token ids.
        attention_width: number of query heads times their width; 0 without attention.
        packed: number of parameters that are stored in 4 bits.
    """

    parameters: int
    trained: int
    layer: int
    layers: int
    weights: int
    hidden_size: int
    intermediate_size: int
    vocabulary: int
    attention_width: int
    packed: int = 0

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers, under the name that transformers' configurations use."""
        return self.layers

    @property
    def head(self) -> int:
        """Number of parameters of the output head."""
        return self.vocabulary * self.hidden_size

    @property
    def trained_share(self) -> float:
        """Fraction (0 to 1) of the parameters that are trained."""
        return self.trained / self.parameters


def count(
    config: PreTrainedConfig, settings: MemorySettings, train: str = "whole", lora: LoraSettings | None = None
) -> ModelSize:
    """Count the parameters of a backbone with a memory around it, without allocating any weights.

    Args:
        config: configuration of the backbone.
        settings: settings of the memory.
        train: the recipe's ``model.train``: ``whole``, ``frozen`` or ``lora``.
        lora: settings of LoRA adapters; required if ``train`` is ``lora``.
    """
    with torch.device("meta"):
        backbone = CausalLM(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        module, name = decoder_layers(backbone)
        layers = list(getattr(module, name))
        layer = sum(weight.numel() for weight in layers[0].parameters())
        packed = linear_layers(backbone.model) if train == "lora" and lora and lora.quantize != "none" else []
        in_4_bits = sum(backbone.model.get_submodule(one).weight.numel() for one in packed)
        select_trainable(backbone, train, lora)
        weights = list(HMT(backbone, settings).parameters())
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0) or 0
    width = text.hidden_size
    return ModelSize(
        parameters=sum(weight.numel() for weight in weights),
        trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        layer=layer,
        layers=len(layers),
        weights=len(weights),
        hidden_size=width,
        intermediate_size=mlp_width(text),
        vocabulary=text.vocab_size,
        attention_width=heads * (getattr(text, "head_dim", None) or width // max(1, heads)),
        packed=in_4_bits,
    )


def mlp_width(config: PreTrainedConfig) -> int:
    """Return the width of a backbone's MLP, whatever its configuration calls it; four times the hidden size if not
    given.

    Args:
        config: configuration of the backbone.
    """
    names = ("intermediate_size", "ffn_dim", "n_inner")
    found = (getattr(config, name, None) for name in names)
    return next((width for width in found if isinstance(width, int)), 4 * config.hidden_size)
