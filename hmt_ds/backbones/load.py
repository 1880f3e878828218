"""Building a backbone: from weights or from a configuration, and choosing what of it is trained."""

import difflib
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from hmt_ds.backbones.converted import KEYS, backbone_config, memory_beside_backbone, read_converted
from hmt_ds.backbones.model import BackboneError, CausalLM
from hmt_ds.backbones.settings import LoraSettings
from hmt_ds.backbones.tied import check_tied

# By the names of most families, and by GPT-2's
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "n_embd", "n_layer", "n_head"),
)


def read_config(source: str | dict[str, Any], *, trust_remote_code: bool = False) -> Any:
    """The model's configuration, from a folder, a hub name, or a mapping with ``model_type``.

    Raises:
        BackboneError: if there is no such model, it is quantized, it is no causal language model, or of no sizes.
    """
    if isinstance(source, dict):
        check_sizes(source)
    elif Path(source, "adapter_config.json").exists():  # transformers would put it in
        raise BackboneError(f"model {source!r}: it has an adapter of peft's: merge it into its model, and name that")
    config = any_config(source, trust_remote_code=trust_remote_code)
    if quantization := getattr(config, "quantization_config", None):
        how = quantization if isinstance(quantization, dict) else quantization.to_dict()
        raise BackboneError(
            f"model {source!r}: its weights are quantized ({how.get('quant_method')}), and such are not trained here, "
            "nor under LoRA: name the model that it was made from"
        )
    return config


def any_config(source: str | dict[str, Any], *, trust_remote_code: bool) -> Any:
    """The same for any model that transformers knows."""
    try:
        if isinstance(source, dict):
            values = dict(source)
            return AutoConfig.for_model(values.pop("model_type"), **values)
        if converted := read_converted(source):
            return backbone_config(converted)
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except KeyError:
        raise BackboneError("model.config: needs model_type, for example llama") from None
    except StrictDataclassError as error:
        name = source.get("model_type") if isinstance(source, dict) else source
        raise BackboneError(f"model {name!r}: {str(error).strip().splitlines()[-1].strip()}") from None
    except (OSError, ValueError, ArithmeticError, ImportError) as error:  # the last from a model's own code
        name = source.get("model_type") if isinstance(source, dict) else source
        where = "" if isinstance(source, dict) or Path(source).exists() else " (no such folder here)"
        reason = str(error).strip().splitlines()[0].partition(" Should contain one of")[0]  # hundreds of names follow
        if "trust_remote_code" in str(error):
            reason = (
                "it has code of its own, which runs with model.trust_remote_code true alone: say so if you trust it"
            )
        raise BackboneError(f"model {name!r}{where}: {reason}") from None


def check_sizes(source: dict[str, Any]) -> None:
    """transformers takes sizes of zero, or divides by them.

    Raises:
        BackboneError: a line for each.
    """
    small = {key: source[key] for key in SIZES if isinstance(source.get(key), int) and source[key] < 1}
    if small:
        raise BackboneError(
            "\n".join(f"model.source.{key} is {size}: must be at least 1" for key, size in small.items())
        )


def check_slips(source: dict[str, Any]) -> None:
    """transformers takes any key into a configuration, so a slip would go unnoticed: refuse what looks like one.

    Raises:
        BackboneError: naming the key that was probably meant.
    """
    default = AutoConfig.for_model(source["model_type"])
    known = [*default.to_dict(), *default.attribute_map]
    for key in source:
        near = difflib.get_close_matches(key, known, 1, cutoff=0.85)
        if near and key not in known and not hasattr(default, key):
            raise BackboneError(f"model.source.{key}: {default.model_type} has no such key; did you mean {near[0]}?")


def build_model(
    source: str | dict[str, Any],
    *,
    dtype: torch.dtype,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> CausalLM:
    """A backbone with the weights of ``source``, or with random ones if it is a mapping.

    Under an active ``HfDeepSpeedConfig`` of stage 3, transformers builds the model inside ``zero.Init`` and fills it
    module by module, so that no rank ever holds it whole.

    Args:
        source: a folder (also one that ``hmt-ds convert`` has written: its backbone is taken), a hub name, or a
            configuration as a mapping.
        dtype: of the weights.
        seed: of random weights.
        device: where random weights are made; stored ones come by way of the host.

    Raises:
        BackboneError: if the files lack a weight.
    """
    if isinstance(source, dict):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(read_config(source), dtype=dtype)
    else:
        model, _ = load_all(source, dtype=dtype, trust_remote_code=trust_remote_code)
    return CausalLM(model)


def load_all(source: str, *, trust_remote_code: bool, **options: Any) -> tuple[Any, list[str]]:
    """A stored model with all its weights: transformers takes random numbers for those that are missing.

    Returns:
        The model, and the names of weights in its files that it does not have.

    Raises:
        BackboneError: naming one that is missing, or has another shape.
    """
    if converted := read_converted(source):
        config = backbone_config(converted)
        beside: AbstractContextManager[None] = memory_beside_backbone(config)
        options |= {"config": config, "key_mapping": KEYS}
    else:
        beside, options = nullcontext(), options | {"trust_remote_code": trust_remote_code}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # what they are is said below
    with beside:
        model, found = AutoModelForCausalLM.from_pretrained(source, **options)
    if missing := sorted(found["missing_keys"]):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise BackboneError(f"model {source!r}: its files have no {missing[0]}{more}")
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise BackboneError(f"model {source!r}: {name} is {list(stored)} in its files, {list(wanted)} by its config")
    return model, sorted(found["unexpected_keys"])


def check_weights(source: str | dict[str, Any], *, trust_remote_code: bool = False) -> list[str]:
    """Are all weights of a model there, of the config's shapes, and tied where it ties them? No other numbers are read.

    Returns:
        A warning, if its files hold more than that: a head of another task, or biases that the config denies.

    Raises:
        BackboneError: in one line.
    """
    if isinstance(source, dict):
        return []
    try:
        model, unknown = load_all(source, trust_remote_code=trust_remote_code, device_map="meta")
        check_tied(model, source)
    except (OSError, RuntimeError, ImportError, SafetensorError) as error:
        raise BackboneError(f"model {source!r}: {' '.join(str(error).split())[:300]}") from None
    if not unknown:
        return []
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return [f"model {source!r}: its files hold {unknown[0]}{more}, which {type(model).__name__} leaves out"]


def select_trainable(backbone: CausalLM, train: str, lora: LoraSettings | None = None, seed: int = 0) -> None:
    """Choose what of the backbone is trained, in place.

    Args:
        train: ``whole``, ``frozen`` (the memory modules alone are trained), or ``lora``.
        lora: how, for ``lora``.
        seed: of the adapters' random weights.
    """
    if train == "whole":
        return
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    if train == "lora":
        add_adapters(backbone.model, lora or LoraSettings(), seed)


def add_adapters(model: nn.Module, lora: LoraSettings, seed: int = 0) -> None:
    """Put LoRA adapters into a model, in place: names and structure stay as they are.

    Each begins with numbers of its own name's, so that a stage of the model has the same as the whole.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    inject_adapter_in_model(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        ),
        model,
    )
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            torch.manual_seed(seed ^ zlib.crc32(name.encode()))
            for adapter in module.lora_A:
                module.reset_lora_parameters(adapter, init_lora_weights=True)
