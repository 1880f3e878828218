"""A run of a model's layers, with what stands in front of the first and behind the last: one stage of a pipeline.

A stage is the transformers model itself with the rest taken out: names of weights, masks, positions and all else stay
the model's own business.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hmt_ds.backbones.compute import layers_in
from hmt_ds.backbones.families import FAMILIES
from hmt_ds.backbones.model import BackboneError, CausalLM

FRONT = {"embed_tokens", "embed_positions", "project_in", "wte", "wpe", "drop", "embed_in", "emb_dropout"}
BACK = {"norm", "ln_f", "final_layer_norm", "project_out"}
SHARED = {"rotary_emb"}  # every stage has its own


class Span(NamedTuple):
    """The layers ``first`` to ``end - 1`` of ``of``."""

    first: int
    end: int
    of: int

    @property
    def opens(self) -> bool:
        """Whether it is the first stage: it has the embeddings."""
        return self.first == 0

    @property
    def closes(self) -> bool:
        """Whether it is the last stage: it has the norm and the head."""
        return self.end == self.of


def spans_of(sizes: Sequence[int]) -> list[Span]:
    """The stages that have so many layers each."""
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [Span(end - size, end, ends[-1]) for size, end in zip(sizes, ends, strict=True)]


def cut(backbone: CausalLM, span: Span) -> None:
    """Take out of a backbone, in place, what does not belong to a stage.

    Raises:
        BackboneError: if it is not known what else the model has besides its layers.
    """
    cut_model(backbone.model, span)


def cut_model(model: Any, span: Span) -> None:
    """The same for the transformers model in it."""
    holder, name = layers_in(model)
    others = {child for child, _ in holder.named_children() if child != name}
    if model.config.model_type not in FAMILIES or others - FRONT - BACK - SHARED:
        raise BackboneError(f"{model.config.model_type} cannot be cut into stages: it is not in the table of families")
    layers = getattr(holder, name)
    kept = nn.ModuleList()
    for number, layer in list(layers.named_children())[span.first : span.end]:
        kept.add_module(number, layer)  # under its own number
    setattr(holder, name, kept)
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[span.first : span.end]  # read by the layer's place in the list
    config.num_hidden_layers = span.end - span.first
    if not span.opens:
        for child in others & FRONT:
            # a head that shares the embeddings' weight keeps them, to be a head
            if not (span.closes and shared_with_head(model, getattr(holder, child))):
                setattr(holder, child, Nothing() if child in ("embed_positions", "wpe") else nn.Identity())
    if not span.closes:
        for child in others & BACK:
            setattr(holder, child, nn.Identity())
        model.all_tied_weights_keys = {}  # nothing that transformers would have to tie
        head = model.get_output_embeddings()
        for child, module in model.named_children():
            if module is head:
                setattr(model, child, nn.Identity())


def shared_with_head(model: Any, module: nn.Module) -> bool:
    """Whether a module is the token embeddings, and the head has, or will have when it is filled, the same weight."""
    return model.config.get_text_config().tie_word_embeddings and module is model.get_input_embeddings()


def width(config: Any) -> int:
    """Of the embeddings, by the configuration of a family of the table."""
    config = config.get_text_config()
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


class Nothing(nn.Module):
    """Stands where positions were added, which the first stage has done."""

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        """A zero to add."""
        return torch.zeros(())


def load_stage(source: str, span: Span, config: Any, **options: Any) -> Any:
    """A stage with its weights from a folder, of which it reads no others.

    Args:
        config: of the whole model.
        options: for ``from_pretrained``.

    Raises:
        BackboneError: if one of its weights is not there: transformers would take random numbers.
    """
    whole = AutoModelForCausalLM._model_mapping[type(config)]

    def __init__(self: Any, config: Any, *arguments: Any, **more: Any) -> None:
        whole.__init__(self, config, *arguments, **more)
        cut_model(self, span)

    # transformers makes the modules without memory, and then fills those that there are
    part: Any = type(whole.__name__, (whole,), {"__init__": __init__, "__module__": whole.__module__})
    model, found = part.from_pretrained(source, config=config, output_loading_info=True, **options)
    if missing := sorted(found["missing_keys"]):
        raise BackboneError(f"{source} has no {missing[0]}, which layers {span.first} to {span.end - 1} need")
    return model
