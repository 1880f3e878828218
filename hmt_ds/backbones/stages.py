"""Cut a model down to one pipeline stage: some layers, embeddings on the first stage, norm and head on the last.

A stage is the transformers model itself with its other modules removed, so names of weights, masks and positions remain
those of transformers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hmt_ds.backbones.compute import find_layers
from hmt_ds.backbones.families import FAMILIES
from hmt_ds.backbones.model import BackboneError, CausalLM
from hmt_ds.backbones.transformers_internals import causal_lm_class, set_tied_weights

# modules beside the list of layers, by the names of all families of the table
FRONT = {"embed_tokens", "embed_positions", "project_in", "wte", "wpe", "drop", "embed_in", "emb_dropout"}
POSITIONS = {"embed_positions", "wpe"}
BACK = {"norm", "ln_f", "final_layer_norm", "project_out"}
SHARED = {"rotary_emb"}  # kept by every stage


class LayerRange(NamedTuple):
    """The decoder layers of a pipeline stage, by their indices in the whole model.

    Attributes:
        first: index of the stage's first layer in the model.
        end: index after the stage's last layer in the model.
        total: number of layers of the whole model.
    """

    first: int
    end: int
    total: int

    @property
    def is_first(self) -> bool:
        """Whether the layers belong to the first pipeline stage, which also has the embeddings."""
        return self.first == 0

    @property
    def is_last(self) -> bool:
        """Whether the layers belong to the last pipeline stage, which also has the final norm and the head."""
        return self.end == self.total


def layer_ranges(sizes: Sequence[int]) -> list[LayerRange]:
    """Return the decoder layers of each pipeline stage, from the stages' sizes.

    Args:
        sizes: number of decoder layers of each stage, from the first stage on.
    """
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [LayerRange(end - size, end, ends[-1]) for size, end in zip(sizes, ends, strict=True)]


def trim_to_stage(backbone: CausalLM, layers: LayerRange) -> None:
    """Remove from a backbone, in place, all modules that belong to other pipeline stages.

    Args:
        backbone: the whole model.
        layers: the decoder layers to keep.

    Raises:
        BackboneError: if the model's family is not listed in families.py, or has modules of unknown purpose.
    """
    trim_model(backbone.model, layers)


def trim_model(model: PreTrainedModel, layers: LayerRange) -> None:
    """Remove from a transformers model, in place, all modules that belong to other pipeline stages.

    Args:
        model: the whole model.
        layers: the decoder layers to keep.

    Raises:
        BackboneError: if the model's family is not listed in families.py, or has modules of unknown purpose.
    """
    holder, name = find_layers(model)
    others = {child for child, _ in holder.named_children() if child != name}
    if model.config.model_type not in FAMILIES or others - FRONT - BACK - SHARED:
        raise BackboneError(
            f"{model.config.model_type} cannot be cut into pipeline stages: backbones/families.py does not list it, or "
            "it has modules of unknown purpose: set pipeline.stages to 1"
        )
    kept = nn.ModuleList()
    for number, layer in list(getattr(holder, name).named_children())[layers.first : layers.end]:
        kept.add_module(number, layer)  # under its number in the whole model: weights keep their names
    setattr(holder, name, kept)
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        # the decoder looks up a layer's type by its place in the list, which starts from 0 in every stage
        config.layer_types = config.layer_types[layers.first : layers.end]
    config.num_hidden_layers = layers.end - layers.first
    if not layers.is_first:
        remove_front(model, holder, others & FRONT, keep_shared=layers.is_last)
    if not layers.is_last:
        for child in others & BACK:
            setattr(holder, child, nn.Identity())
        remove_head(model)


def remove_front(model: PreTrainedModel, holder: nn.Module, names: set[str], *, keep_shared: bool) -> None:
    """Replace the modules in front of the first decoder layer by modules without weights, for stages after the first.

    Args:
        model: the transformers model.
        holder: the module of the model whose children are replaced.
        names: names of the children to replace.
        keep_shared: keep the token embeddings if they are tied to the head, which the last stage needs.
    """
    for name in names:
        if not (keep_shared and shared_with_head(model, getattr(holder, name))):
            setattr(holder, name, NoPositions() if name in POSITIONS else nn.Identity())


def remove_head(model: PreTrainedModel) -> None:
    """Replace a model's output head with an identity, and tell transformers that no weights are tied; for all stages
    but the last."""
    set_tied_weights(model, {})
    head = model.get_output_embeddings()
    for name, module in model.named_children():
        if module is head:
            setattr(model, name, nn.Identity())


def shared_with_head(model: PreTrainedModel, module: nn.Module) -> bool:
    """Return whether a module is a model's token embeddings and its weight is tied to the output head's.

    Args:
        model: the transformers model.
        module: a module of the model.
    """
    return model.config.get_text_config().tie_word_embeddings and module is model.get_input_embeddings()


def embedding_width(config: PreTrainedConfig) -> int:
    """Return the width of a model's token embeddings, for a family listed in families.py.

    Args:
        config: the model's configuration.
    """
    config = config.get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


class NoPositions(nn.Module):
    """Replaces position embeddings on later pipeline stages, because the first stage has added them already."""

    def forward(self, *arguments: object, **options: object) -> Tensor:
        """Return zero (a scalar), which the decoder adds to its input in place of position embeddings."""
        return torch.zeros(())


def load_stage(source: str, layers: LayerRange, config: PreTrainedConfig, **options: object) -> PreTrainedModel:
    """Load one pipeline stage of a stored model, without reading the weights of other stages.

    Args:
        source: a folder or a hub name.
        layers: decoder layers of the stage.
        config: configuration of the whole model.
        options: further arguments of ``from_pretrained``.

    Raises:
        BackboneError: the files lack one of the stage's weights, which transformers would fill with random numbers.
    """
    whole = causal_lm_class(config)

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *arguments: object, **more: object) -> None:
        whole.__init__(self, config, *arguments, **more)
        trim_model(self, layers)

    # `from_pretrained` constructs the model on the meta device and then reads weights for the modules that it has:
    # a subclass that trims itself in its constructor is filled with the stage's weights alone
    stage_class: type[PreTrainedModel] = type(
        whole.__name__, (whole,), {"__init__": __init__, "__module__": whole.__module__}
    )
    model, found = stage_class.from_pretrained(source, config=config, output_loading_info=True, **options)
    if missing := sorted(found["missing_keys"]):
        raise BackboneError(
            f"model {source!r}: its files lack the weight {missing[0]}, of layers {layers.first} to {layers.end - 1}: "
            "name a model whose files are complete"
        )
    return model
