"""Does a model fit as a backbone? Asked of a one-layer random model of its configuration, before anything starts."""

import copy
import inspect
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from transformers import AutoModelForCausalLM

from hmt_ds.backbones.families import FAMILIES
from hmt_ds.backbones.load import add_adapters
from hmt_ds.backbones.model import BackboneError, CausalLM
from hmt_ds.backbones.settings import LoraSettings


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


def check_adapters(config: Any, lora: LoraSettings, stages: int = 1) -> None:
    """Make sure that LoRA finds the layers that it is to adapt, and that they may be adapted.

    Args:
        stages: into which the backbone is cut.

    Raises:
        BackboneError: one line that says what peft says, or what cannot be.
    """
    with torch.device("meta"):
        small = one_layer(config)
    try:
        add_adapters(small, lora)
    except ValueError as error:
        raise BackboneError(first_line(error)) from None
    # peft's wrappers around single parameters fail at ZeRO-3, and are not merged by `hmt-ds convert`
    if wrapped := [name for name, module in small.named_modules() if isinstance(module, ParamWrapper)]:
        raise BackboneError(
            f"target_modules has {wrapped[0]}, a single parameter, as experts are too: name linear layers, such as "
            "[q_proj, k_proj, v_proj, o_proj]"
        )
    ends = [end for end in (small.get_input_embeddings(), small.get_output_embeddings()) if hasattr(end, "lora_A")]
    names = [name for name, module in small.named_modules() if any(module is end for end in ends)]
    if names and stages > 1:
        raise BackboneError(f"target_modules has {names[0]}, and on stages adapters are in layers alone: leave it out")
    if lora.dropout and hasattr(small.get_output_embeddings(), "lora_A"):
        raise BackboneError(
            f"dropout is {lora.dropout}, and target_modules has the head {names[-1]}, whose logits are computed twice: "
            "leave it out, or take dropout 0"
        )


def one_layer(config: Any) -> Any:
    """A random model of one layer, in evaluation mode."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=is_foreign(config)).eval()


def is_foreign(config: Any) -> bool:
    """Whether a configuration is code of its folder's, which was let in by the user's word when it was read."""
    return type(config).__module__.startswith("transformers_modules")


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
