"""Build a backbone with stored or random weights, and check that its files hold all of its weights."""

from contextlib import AbstractContextManager, nullcontext
from pickle import UnpicklingError

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hmt_ds.backbones.converted import (
    BACKBONE_KEY_MAPPING,
    ConfigValues,
    backbone_config,
    read_converted,
    without_memory,
)
from hmt_ds.backbones.hashes import check_hashes
from hmt_ds.backbones.model import BackboneError, CausalLM, first_line
from hmt_ds.backbones.model_config import read_config
from hmt_ds.backbones.tied import check_tied


def build_model(
    source: str | ConfigValues,
    *,
    dtype: torch.dtype,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> CausalLM:
    """Build a backbone (a causal language model) with stored or with random weights.

    With ZeRO-3, call this inside :func:`build_under_zero_init`: then no rank ever holds the whole model.

    Args:
        source: a hub name, a Hugging Face folder, a folder written by ``hmt-ds convert`` (only its backbone is read),
            or a transformers configuration as a mapping.
        dtype: dtype of the weights.
        seed: seed of random weights.
        device: device on which random weights are created; stored weights are read into host memory.
        trust_remote_code: allow Python code in the model's folder to run.

    Raises:
        BackboneError: the model's files lack a weight, or hold one with another shape than the configuration says.
    """
    if isinstance(source, dict):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(read_config(source), dtype=dtype)
    else:
        model, _ = load_all_weights(source, trust_remote_code=trust_remote_code, dtype=dtype)
    return CausalLM(model)


def load_all_weights(source: str, *, trust_remote_code: bool, **options: object) -> tuple[PreTrainedModel, list[str]]:
    """Load a stored model; refuse missing weights, which transformers would fill with random numbers.

    Args:
        source: a folder or a hub name.
        trust_remote_code: allow Python code in the model's folder to run.
        options: further arguments of ``from_pretrained``.

    Returns:
        The model, and the names of stored weights that the model does not have.

    Raises:
        BackboneError: naming a weight that is missing or has another shape.
    """
    if converted := read_converted(source):
        config = backbone_config(converted)
        loading: AbstractContextManager[None] = without_memory(config)
        options |= {"config": config, "key_mapping": BACKBONE_KEY_MAPPING}
    else:
        loading, options = nullcontext(), options | {"trust_remote_code": trust_remote_code}
    # mismatched shapes are reported below, in one line
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with loading:
        model, found = AutoModelForCausalLM.from_pretrained(source, **options)
    if missing := sorted(found["missing_keys"]):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise BackboneError(
            f"model {source!r}: its files lack the weight {missing[0]}{more}: name a model whose files are complete"
        )
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise BackboneError(
            f"model {source!r}: {name} has the shape {list(stored)} in its files, but {list(wanted)} by its config.json"
            ": name a model whose files and config.json belong together"
        )
    return model, sorted(found["unexpected_keys"])


def check_weights(source: str | ConfigValues, *, trust_remote_code: bool = False) -> list[str]:
    """Check that a model's files hold all its weights, with the shapes and the weight tying of its configuration.

    Only tied weights are read; for all others names and shapes are compared.

    Args:
        source: a folder or hub name; a configuration (a mapping, for random weights) passes unchecked.
        trust_remote_code: allow Python code in the model's folder to run.

    Returns:
        A warning if the files hold weights that the model does not use, such as the head of another task or biases that
        the configuration turns off; and one for each changed file, by the hashes in the folder.

    Raises:
        BackboneError: in one line, if a weight is missing, has another shape or cannot be read.
    """
    if isinstance(source, dict):
        return []
    warnings = check_hashes(source)
    try:
        model, unknown = load_all_weights(source, trust_remote_code=trust_remote_code, device_map="meta")
        check_tied(model, source)
    except BackboneError:
        raise
    except UnpicklingError:  # torch's message recommends to read the file without this protection
        raise BackboneError(
            f"model {source!r}: its .bin file holds Python objects, whose code could do anything: name a model with "
            "safetensors files"
        ) from None
    except Exception as error:  # constructors of models raise all kinds for a configuration that they cannot use
        said = " ".join(str(error).split())[:300]
        raise BackboneError(f"model {source!r}: {said if ' ' in said else first_line(error)}") from None
    if not unknown:
        return warnings
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return [
        *warnings,
        f"model {source!r}: its files hold {unknown[0]}{more}, which {type(model).__name__} does not use",
    ]
