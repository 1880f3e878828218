"""Check before a run that a model works as a backbone, on a small random model of its configuration."""

import copy
import inspect
import re
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hmt_ds.backbones.families import FAMILIES
from hmt_ds.backbones.model import BackboneError, CausalLM, first_line
from hmt_ds.backbones.settings import LoraSettings
from hmt_ds.backbones.trainable import add_adapters
from hmt_ds.backbones.transformers_internals import has_own_code, tied_weights

LAYERS = 2  # of the small models: RWKV's initialization divides by one less
# linear layers whose weights Mamba's mixer gives to its kernels, past the adapters
BYPASSED = {kind: {"conv1d", "x_proj", "dt_proj", "out_proj"} for kind in ("mamba", "falcon_mamba")}


def check_backbone(config: PreTrainedConfig) -> None:
    """Check that a model can be a backbone: that it can be built, is causal, and takes embeddings instead of token ids.

    Families listed in families.py are only built.

    Args:
        config: the model's configuration, of which a model of two layers with random weights is built.

    Raises:
        BackboneError: in one line, naming the capability that the model lacks.
    """
    kind, known = config.model_type, config.model_type in FAMILIES
    try:
        with torch.device("meta") if known else nullcontext():
            small = small_model(config, LAYERS)
    except Exception as error:  # a constructor may raise anything, such as KeyError for an unknown activation
        raise BackboneError(
            f"{kind} cannot be built as a causal language model ({first_line(error)}): choose another model"
        ) from None
    if known:
        return
    if "inputs_embeds" not in inspect.signature(small.base_model.forward).parameters:
        raise BackboneError(
            f"{kind} takes no inputs_embeds, so memory embeddings cannot be put in front of the tokens: choose a model "
            "whose forward method takes inputs_embeds"
        )
    backbone = CausalLM(small)
    embeddings = torch.randn(1, 4, backbone.dim)  # not embeddings of tokens: memories are not either
    other_last = torch.cat([embeddings[:, :-1], torch.randn(1, 1, backbone.dim)], dim=1)
    try:
        expected = small(inputs_embeds=embeddings).logits
        hidden, other = backbone.decode(embeddings), backbone.decode(other_last)
        logits = backbone.logits(hidden)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise BackboneError(
            f"{kind} gives no last_hidden_state from inputs_embeds ({first_line(error)}): choose another model"
        ) from None
    if not close(hidden[:, :-1], other[:, :-1]):
        raise BackboneError(f"{kind} is not causal: a position attends to later ones: choose a causal language model")
    if not close(expected, logits):
        raise BackboneError(
            f"{kind}: its logits are not its output embeddings applied to the last hidden state, as the loss "
            "computes them: choose another model"
        )


def check_packing(config: PreTrainedConfig) -> None:
    """Check that a model can keep several documents packed into one row apart, as ``data.pack`` needs.

    Families listed in families.py are known; any other is tried on a small random model.

    Args:
        config: the model's configuration.

    Raises:
        BackboneError: in one line, if the model cannot keep them apart.
    """
    family = FAMILIES.get(config.model_type)
    if not (family.packs if family else keeps_apart(CausalLM(small_model(config, LAYERS)))):
        raise BackboneError(f"{config.model_type} does not keep documents in one row apart: set data.pack to false")


def keeps_apart(backbone: CausalLM) -> bool:
    """Return whether a model computes two documents packed into one row as it computes each of them alone.

    Args:
        backbone: the model.
    """
    embeddings, parts = torch.randn(1, 7, backbone.dim), torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    alone = torch.cat([backbone.decode(embeddings[:, :3]), backbone.decode(embeddings[:, 3:])], dim=1)
    try:
        return close(backbone.decode(embeddings, None, parts), alone)
    except (TypeError, ValueError, RuntimeError):  # it takes no positions
        return False


def close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding: relative tolerance 1e-4, absolute 1e-5.

    Args:
        one, other: tensors of equal shape.
    """
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def check_adapters(config: PreTrainedConfig, lora: LoraSettings, stages: int = 1) -> None:
    """Check that a model has the target layers of LoRA adapters, and that adapters are supported on them.

    Args:
        config: the model's configuration.
        lora: settings of the adapters.
        stages: number of pipeline stages; 1 without a pipeline.

    Raises:
        BackboneError: in one line: peft's message, or the target layer that cannot have an adapter and what to name
            instead.
    """
    from peft.tuners.lora.layer import ParamWrapper  # takes a tenth of a second, and most runs need none of it

    with torch.device("meta"):
        small = small_model(config, LAYERS)
    try:
        add_adapters(small, lora)
    except (ValueError, re.error) as error:  # target_modules may be a regular expression
        raise BackboneError(first_line(error)) from None
    adapted = {name.rpartition(".")[2] for name, module in small.named_modules() if hasattr(module, "lora_A")}
    if lost := sorted(adapted & BYPASSED.get(config.model_type, set())):
        raise BackboneError(
            f"target_modules has {lost[0]}, whose weight {config.model_type} reads without its adapter: name in_proj"
        )
    # peft's wrappers around single parameters fail at ZeRO-3, and `hmt-ds convert` cannot merge them
    if wrapped := [name for name, module in small.named_modules() if isinstance(module, ParamWrapper)]:
        raise BackboneError(
            f"target_modules has {wrapped[0]}, which is a single parameter, as experts are: name linear layers, such "
            "as [q_proj, k_proj, v_proj, o_proj]"
        )
    tied = set(tied_weights(small))
    ends = [end for end in (small.get_input_embeddings(), small.get_output_embeddings()) if hasattr(end, "lora_A")]
    names = [name for name, module in small.named_modules() if any(module is end for end in ends)]
    if names and tied:
        raise BackboneError(
            f"target_modules has {names[0]}, whose weight is that of the embeddings and of the head: an adapter would "
            "change one of them alone, and could not be merged: remove it"
        )
    if names and stages > 1:
        raise BackboneError(
            f"target_modules has {names[0]}, but with pipeline stages only decoder layers can have adapters: remove it"
        )
    if lora.dropout and hasattr(small.get_output_embeddings(), "lora_A"):
        # the loss recomputes the head's logits in chunks, and would draw another dropout mask
        raise BackboneError(
            f"dropout is {lora.dropout}, and target_modules has the output head {names[-1]}, whose logits are computed "
            f"twice, with another dropout mask each time: remove {names[-1]} from target_modules, or set dropout to 0"
        )


def small_model(config: PreTrainedConfig, layers: int = 1) -> PreTrainedModel:
    """Build a small model with random weights (float32, in evaluation mode), to try out a configuration.

    Args:
        config: the model's configuration, which is not changed.
        layers: number of decoder layers.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    if vars(config).get("layer_types"):  # Mamba's is a property, derived from the number of layers
        config.layer_types = config.layer_types[:layers]
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=has_own_code(config)).eval()
