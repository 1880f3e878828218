"""Does a model fit as a backbone? Asked of a one-layer random model of its configuration, before anything starts."""

import copy
import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from hmt_ds.backbones.families import FAMILIES
from hmt_ds.backbones.load import LoraSettings, add_adapters
from hmt_ds.backbones.model import BackboneError, CausalLM


def check_backbone(config: Any) -> None:
    """Make sure that a model outside the table works through the general row.

    Raises:
        BackboneError: one line that says what the model lacks.
    """
    if config.model_type in FAMILIES:
        return
    kind = config.model_type
    try:
        small = one_layer(config)
    except Exception as error:  # whatever a stranger's constructor raises
        raise BackboneError(f"{kind} cannot be built as a causal language model: {first_line(error)}") from None
    if "inputs_embeds" not in inspect.signature(small.base_model.forward).parameters:
        raise BackboneError(f"{kind} takes no inputs_embeds, so memory embeddings cannot be put in front of the tokens")
    backbone = CausalLM(small)
    embeddings = torch.randn(1, 4, backbone.dim)  # of no token, as memories are
    other_end = torch.cat([embeddings[:, :-1], torch.randn(1, 1, backbone.dim)], dim=1)
    try:
        own = small(inputs_embeds=embeddings).logits
        hidden, other = backbone.decode(embeddings), backbone.decode(other_end)
        ours = backbone.logits(hidden)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise BackboneError(f"{kind} gives no last_hidden_state from inputs_embeds: {first_line(error)}") from None
    if not torch.allclose(hidden[:, :-1], other[:, :-1], rtol=1e-4, atol=1e-5):
        raise BackboneError(f"{kind} is not causal: a position sees later ones")
    if not torch.allclose(own, ours, rtol=1e-4, atol=1e-5):
        raise BackboneError(f"{kind} computes its logits in a way of its own; it needs a row in backbones/families.py")


def check_adapters(config: Any, lora: LoraSettings) -> None:
    """Make sure that LoRA finds the layers that it is to adapt.

    Raises:
        BackboneError: one line that says what peft says.
    """
    with torch.device("meta"):
        small = one_layer(config)
    try:
        add_adapters(small, lora)
    except ValueError as error:
        raise BackboneError(first_line(error)) from None


def one_layer(config: Any) -> Any:
    """A random model of one layer, in evaluation mode."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
