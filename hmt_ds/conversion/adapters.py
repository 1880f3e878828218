"""LoRA adapters of a checkpoint: merged into the weights, or written as a peft adapter."""

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
    """LoRA adapters of a model, with their weights and the modules that they belong to.

    Attributes:
        weights: all weights of the model by name, adapters included. An adapter's weights are called
            ``LAYER.lora_A.default.weight`` and ``LAYER.lora_B.default.weight``, those of an embedding
            ``LAYER.lora_embedding_A.default``.
        model: the model with adapters, on the meta device.
    """

    weights: Weights
    model: HMT

    def layers(self) -> set[str]:
        """Names of the model's layers that have a LoRA adapter."""
        return {name.partition(ADAPTER)[0] for name in self.weights.shapes if ADAPTER in name}

    def merged(self, plain: Weights) -> Weights:
        """Return the weights of the model without adapters, after adding each LoRA adapter's product to its layer in
        float32.

        Args:
            plain: weights of the model without adapters.
        """
        layers = self.layers()

        def read(name: str) -> Tensor:
            weight, layer = plain.read(name), name.removesuffix(".weight")
            return weight.float() + self.change(layer) if layer in layers else weight

        return Weights(plain.shapes, read)

    def change(self, layer: str) -> Tensor:
        """Return the matrix that a layer's LoRA adapter adds to the layer's weight, as peft computes it.

        Args:
            layer: name of the layer.

        Returns:
            A float32 tensor in the weight's shape.
        """
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
        """Return only the LoRA adapters' weights, under the names that peft gives them in adapter_model.safetensors."""

        def rename(name: str) -> str | None:
            if ADAPTER not in name:
                return None
            return name.replace(BACKBONE, "base_model.model.", 1).replace(".default", "")

        return self.weights.renamed(rename)


def peft_config(lora: LoraSettings, source: str | None) -> LoraConfig:
    """Return peft's configuration for the LoRA adapters of a run.

    Args:
        lora: LoRA settings of the run.
        source: folder or hub name of the backbone that the adapters were trained on; None if unknown.
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
    """Refuse to merge LoRA adapters into layers whose weight is tied to another layer's.

    Args:
        layers: names of the layers that have an adapter.
        model: the model without adapters, on the meta device.

    Raises:
        ConversionError: a layer with an adapter has a tied weight.
    """
    tied = [names for names, _ in names_of(model) if len(names) > 1]
    for name in (name for names in tied for name in names):
        if name.removesuffix(".weight") in layers:
            raise ConversionError(
                f"{name} has an adapter and is tied to another weight, so the adapter cannot be merged: "
                "write a run's adapter with --what adapter"
            )


def merge_found(weights: Weights, config: PreTrainedConfig, settings: MemorySettings, alpha: float) -> Weights:
    """Merge the LoRA adapters in a checkpoint of another program, if it has any, into its weights.

    Args:
        weights: weights of the checkpoint.
        config: configuration of the backbone.
        settings: settings of the memory.
        alpha: LoRA's alpha; adapters are scaled by alpha / rank.

    Returns:
        The merged weights; ``weights`` itself if there are no adapters.

    Raises:
        ConversionError: the adapters have different ranks, or belong to a tied weight.
    """
    ranks = {shape[0] for name, shape in weights.shapes.items() if "lora_A" in name or "lora_embedding_A" in name}
    if not ranks:
        return weights
    if len(ranks) > 1:
        found = ", ".join(map(str, sorted(ranks)))
        raise ConversionError(f"its LoRA adapters have different ranks ({found}): name a checkpoint with one rank")
    layers = sorted({name.partition(ADAPTER)[0].removeprefix(BACKBONE) for name in weights.shapes if ADAPTER in name})
    lora = LoraSettings(rank=ranks.pop(), alpha=alpha, target_modules=layers)
    check_untied({BACKBONE + layer for layer in layers}, skeleton(config, settings))
    plain = weights.renamed(lambda name: None if ADAPTER in name else name)
    return Adapters(weights, skeleton(config, settings, lora)).merged(plain)
