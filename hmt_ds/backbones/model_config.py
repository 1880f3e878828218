"""Read a backbone's configuration from a folder, the hub or a recipe, and refuse models that cannot be trained."""

import difflib
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from hmt_ds.backbones.converted import ConfigValues, backbone_config, read_converted
from hmt_ds.backbones.model import BackboneError, first_line

# sizes by the names of most families, and by GPT-2's
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "n_embd", "n_layer", "n_head"),
)
SWITCHES = ("output_attentions", "output_hidden_states", "return_dict", "use_cache")


def read_config(source: str | ConfigValues, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Read a model's configuration from a folder, a hub name, or a mapping with ``model_type``, and check its values.

    Args:
        source: the folder, hub name or mapping.
        trust_remote_code: allow Python code in the model's folder to run.

    Raises:
        BackboneError: if there is no such model, or it is quantized, holds an adapter, is not a causal language model,
            or has a size below 1 or another value that no model can have.
    """
    if isinstance(source, dict):
        check_sizes(source, "model.source.")
    elif Path(source, "adapter_config.json").exists():
        # transformers would add the adapter to the model without saying so
        raise BackboneError(
            f"model {source!r}: it holds a peft adapter: merge the adapter into its model and name the merged model"
        )
    config = any_config(source, trust_remote_code=trust_remote_code)
    if not isinstance(source, dict):
        check_sizes(config.to_dict(), f"model {source!r}: ")
    check_values(config, "model.source." if isinstance(source, dict) else f"model {source!r}: ")
    if quantization := getattr(config, "quantization_config", None):
        how = quantization if isinstance(quantization, dict) else quantization.to_dict()
        raise BackboneError(
            f"model {name_of(source)!r}: its weights are quantized ({how.get('quant_method')}), which cannot be "
            "trained here, not even with LoRA: name the model that it was quantized from"
        )
    return config


def any_config(source: str | ConfigValues, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Read the configuration of any model that transformers knows, without checking its values.

    Args:
        source: a folder, a hub name, or a mapping with ``model_type``.
        trust_remote_code: allow Python code in the model's folder to run.

    Raises:
        BackboneError: in one line, if there is no such model or transformers cannot read it.
    """
    try:
        if isinstance(source, dict):
            values = dict(source)
            return AutoConfig.for_model(values.pop("model_type"), **values)
        if converted := read_converted(source):
            return backbone_config(converted)
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except StrictDataclassError as error:
        raise BackboneError(f"model {name_of(source)!r}: {str(error).strip().splitlines()[-1].strip()[:300]}") from None
    except Exception as error:  # a configuration's class, or a model's own code, may raise anything
        if isinstance(source, dict) and "model_type" not in source:
            raise BackboneError(
                "model.source: the configuration lacks the key model_type: add it, for example model_type: llama"
            ) from None
        where = "" if isinstance(source, dict) or Path(source).exists() else " (no such folder here)"
        # transformers appends the hundreds of model types that it knows
        reason = first_line(error).partition(" Should contain one of")[0]
        if "trust_remote_code" in str(error):
            reason = "it has its own code, which runs only with --model.trust_remote_code true: give it if you trust it"
        if "connect" in reason:
            reason = f"{reason.rstrip('.')}: name a model's folder, or load it once where the hub can be reached"
        raise BackboneError(f"model {name_of(source)!r}{where}: {reason}") from None


def name_of(source: str | ConfigValues) -> str | None:
    """Return a model's name for error messages: folder, hub name, or the ``model_type`` of a configuration, if it has
    one.

    Args:
        source: a folder, a hub name or a configuration as a mapping.
    """
    return source.get("model_type") if isinstance(source, dict) else source


def check_sizes(source: ConfigValues, prefix: str) -> None:
    """Refuse configuration sizes below 1, such as ``hidden_size: 0``, which transformers would accept or divide by.

    Args:
        source: the configuration's keys and values.
        prefix: text in front of every line of the error, such as ``model.source.``.

    Raises:
        BackboneError: with a line for each size below 1.
    """
    small = {key: source[key] for key in SIZES if isinstance(source.get(key), int) and source[key] < 1}
    if small:
        raise BackboneError("\n".join(f"{prefix}{key} is {size}: must be at least 1" for key, size in small.items()))


def check_values(config: PreTrainedConfig, prefix: str) -> None:
    """Refuse a dtype that torch lacks, switches that are not true or false, and a rotary scaling factor of 0 or less,
    with which every output is nan.

    Args:
        config: the model's configuration.
        prefix: text in front of every line of the error, such as ``model.source.``.

    Raises:
        BackboneError: with a line for each wrong value.
    """
    wrong, text = [], config.get_text_config()
    if not isinstance(config.dtype, torch.dtype | None):
        wrong.append(f"dtype is {config.dtype!r}: must be a type of torch, such as bfloat16")
    switches = {name: getattr(text, name, None) for name in SWITCHES}
    wrong += [
        f"{key} is {value!r}: must be true or false"
        for key, value in switches.items()
        if not isinstance(value, bool | None)
    ]
    rope = getattr(text, "rope_parameters", None) or {}
    for values in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        factor = values.get("factor", 1)
        if not isinstance(factor, int | float) or factor <= 0:
            wrong.append(f"rope_parameters.factor is {factor!r}: must be a number above 0")
    if wrong:
        raise BackboneError("\n".join(prefix + line for line in wrong))


def check_config_keys(source: ConfigValues) -> None:
    """Refuse misspelt keys of a model's configuration, because transformers accepts any key.

    Args:
        source: the configuration's keys and values.

    Raises:
        BackboneError: naming the unknown key and the known key most similar to it.
    """
    default = AutoConfig.for_model(source["model_type"])
    known = [*default.to_dict(), *default.attribute_map]
    for key in source:
        near = difflib.get_close_matches(key, known, 1, cutoff=0.85)
        if near and key not in known and not hasattr(default, key):
            raise BackboneError(f"model.source.{key}: {default.model_type} has no such key; did you mean {near[0]}?")
