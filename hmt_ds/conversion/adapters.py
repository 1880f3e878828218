"""LoRA adapters in a checkpoint: put into the weights, or written alone."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hmt_ds.backbones import LoraSettings
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.skeleton import names_of, skeleton
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import HMT, MemorySettings

ADAPTER = ".lora_"  # in the names of an adapter's weights, behind its layer's
PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
BACKBONE = "backbone.model."


@dataclass(frozen=True)
class Adapters:
    """The LoRA adapters of a run.

    Attributes:
        weights: ours, among which theirs are, as ``LAYER.lora_A.default.weight`` and ``lora_B``; those of an embedding
            as ``LAYER.lora_embedding_A.default``.
        model: a skeleton with adapters.
    """

    weights: Weights
    model: HMT

    def layers(self) -> set[str]:
        """Those that have one."""
        return {name.partition(ADAPTER)[0] for name in self.weights.shapes if ADAPTER in name}

    def merged(self, plain: Weights) -> Weights:
        """Weights without adapters, with what they add put in, in float32."""
        layers = self.layers()

        def read(name: str) -> Tensor:
            weight, layer = plain.read(name), name.removesuffix(".weight")
            return weight.float() + self.change(layer) if layer in layers else weight

        return Weights(plain.shapes, read)

    def change(self, layer: str) -> Tensor:
        """What a layer's adapter adds to its weight, by peft's own arithmetic."""
        module: Any = self.model.get_submodule(layer)
        for part in PARTS:
            stored = [name for name in self.weights.shapes if name.startswith(f"{layer}.{part}.default")]
            if not stored:
                continue
            weight = nn.Parameter(self.weights.read(stored[0]).float(), requires_grad=False)
            place = getattr(module, part)
            if isinstance(place, nn.ParameterDict):
                place["default"] = weight
            else:
                place["default"].weight = weight
        return module.get_delta_weight("default")

    def alone(self) -> Weights:
        """As peft names them."""

        def rename(name: str) -> str | None:
            if ADAPTER not in name:
                return None
            return name.replace(BACKBONE, "base_model.model.", 1).replace(".default", "")

        return self.weights.renamed(rename)


def check_untied(layers: set[str], model: HMT) -> None:
    """Can these layers' adapters be put in?

    Args:
        model: a skeleton without adapters.

    Raises:
        ConversionError: if one's weight is another layer's too, which has no adapter.
    """
    tied = [names for names, _ in names_of(model) if len(names) > 1]
    for name in (name for names in tied for name in names):
        if name.removesuffix(".weight") in layers:
            raise ConversionError(f"{name} has an adapter and is tied to another weight: it cannot be put in")


def merge_found(weights: Weights, config: Any, settings: MemorySettings, alpha: float) -> Weights:
    """Weights from elsewhere whose adapters, if any, are put in.

    Args:
        alpha: adapters are scaled by alpha / r; the files do not say it.

    Raises:
        ConversionError: where what comes out would be another model.
    """
    ranks = {shape[0] for name, shape in weights.shapes.items() if "lora_A" in name or "lora_embedding_A" in name}
    if not ranks:
        return weights
    if len(ranks) > 1:
        raise ConversionError(f"LoRA adapters of several ranks: {', '.join(map(str, sorted(ranks)))}")
    layers = sorted({name.partition(ADAPTER)[0].removeprefix(BACKBONE) for name in weights.shapes if ADAPTER in name})
    lora = LoraSettings(rank=ranks.pop(), alpha=alpha, target_modules=layers)
    check_untied({BACKBONE + layer for layer in layers}, skeleton(config, settings))
    plain = weights.renamed(lambda name: None if ADAPTER in name else name)
    return Adapters(weights, skeleton(config, settings, lora)).merged(plain)
