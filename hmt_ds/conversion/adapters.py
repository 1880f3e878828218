"""LoRA adapters in a checkpoint: merged into the weights, or written separately."""

from dataclasses import dataclass

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hmt_ds.backbones import LoraSettings
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.export import BACKBONE
from hmt_ds.conversion.skeleton import names_of, skeleton
from hmt_ds.conversion.weights import Weights
from hmt_ds.memory import HMT, MemorySettings

ADAPTER = ".lora_"  # in the names of an adapter's weights, after the name of its layer
PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True)
class Adapters:
    """The LoRA adapters of a run.

    Attributes:
        weights: a run's weights, with the adapters' as ``LAYER.lora_A.default.weight`` and ``lora_B``, or for an
            embedding as ``LAYER.lora_embedding_A.default``.
        model: a skeleton with adapters.
    """

    weights: Weights
    model: HMT

    def layers(self) -> set[str]:
        """Return the names of the layers that have an adapter."""
        return {name.partition(ADAPTER)[0] for name in self.weights.shapes if ADAPTER in name}

    def merged(self, plain: Weights) -> Weights:
        """Return the plain weights with the adapters merged in, in float32."""
        layers = self.layers()

        def read(name: str) -> Tensor:
            weight, layer = plain.read(name), name.removesuffix(".weight")
            return weight.float() + self.change(layer) if layer in layers else weight

        return Weights(plain.shapes, read)

    def change(self, layer: str) -> Tensor:
        """Return what a layer's adapter adds to its weight, by peft's own arithmetic."""
        module: LoraLayer = self.model.get_submodule(layer)
        for part in PARTS:
            stored = [name for name in self.weights.shapes if name.startswith(f"{layer}.{part}.default")]
            if not stored:
                continue
            # the skeleton is on the meta device: give this one adapter its numbers
            weight = nn.Parameter(self.weights.read(stored[0]).float(), requires_grad=False)
            place = getattr(module, part)
            if isinstance(place, nn.ParameterDict):
                place["default"] = weight
            else:
                place["default"].weight = weight
        return module.get_delta_weight("default")

    def separate(self) -> Weights:
        """Return only the adapters' weights, by peft's names."""

        def rename(name: str) -> str | None:
            if ADAPTER not in name:
                return None
            return name.replace(BACKBONE, "base_model.model.", 1).replace(".default", "")

        return self.weights.renamed(rename)


def peft_config(lora: LoraSettings, source: str | None) -> LoraConfig:
    """Return peft's configuration of a run's adapters.

    Args:
        lora: the run's settings.
        source: folder or hub name of the backbone that they belong to.
    """
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
        inference_mode=True,
    )


def check_untied(layers: set[str], model: HMT) -> None:
    """Refuse to merge adapters of layers whose weight is tied to another layer's.

    Args:
        layers: names of the layers.
        model: a skeleton without adapters.

    Raises:
        ConversionError: if the weight of any of these layers is tied.
    """
    tied = [names for names, _ in names_of(model) if len(names) > 1]
    for name in (name for names in tied for name in names):
        if name.removesuffix(".weight") in layers:
            raise ConversionError(f"{name} has an adapter and is tied to another weight: the adapter cannot be merged")


def merge_found(weights: Weights, config: PreTrainedConfig, settings: MemorySettings, alpha: float) -> Weights:
    """Merge the adapters of a checkpoint without a recipe, if it has any.

    Args:
        weights: of the checkpoint.
        config: the backbone's configuration.
        settings: the memory's.
        alpha: adapters are scaled by alpha / r; r is the adapters' rank.

    Raises:
        ConversionError: if they cannot be merged.
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
