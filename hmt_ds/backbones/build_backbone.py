"""Building a backbone with stored or random weights, and checking that its files hold all weights."""

from contextlib import AbstractContextManager, nullcontext

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from hmt_ds.backbones.converted import (
    BACKBONE_KEY_MAPPING,
    ConfigValues,
    backbone_config,
    read_converted,
    without_memory,
)
from hmt_ds.backbones.model import BackboneError, CausalLM
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
    """Build a backbone with the weights of ``source``, or with random weights if it is a mapping.

    Inside :func:`build_under_zero_init`, transformers builds the model inside ``zero.Init`` and fills it module by
    module, so that no rank ever holds it whole.

    Args:
        source: a folder (one that ``hmt-ds convert`` has written too: its backbone is used), a hub name, or a
            configuration as a mapping.
        dtype: of the weights.
        seed: of random weights.
        device: where random weights are made; stored weights are read into the host's memory.
        trust_remote_code: allow code of the model's folder to run.

    Raises:
        BackboneError: if the files lack a weight.
    """
    if isinstance(source, dict):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(read_config(source), dtype=dtype)
    else:
        model, _ = load_all_weights(source, trust_remote_code=trust_remote_code, dtype=dtype)
    return CausalLM(model)


def load_all_weights(source: str, *, trust_remote_code: bool, **options: object) -> tuple[PreTrainedModel, list[str]]:
    """Load a stored model, and refuse missing weights: transformers would fill them with random numbers.

    Args:
        source: a folder or a hub name.
        trust_remote_code: allow code of the model's folder to run.
        options: for ``from_pretrained``.

    Returns:
        The model, and the names of weights in its files that it does not have.

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
        raise BackboneError(f"model {source!r}: its files have no {missing[0]}{more}")
    for name, stored, wanted in sorted(found["mismatched_keys"]):
        raise BackboneError(f"model {source!r}: {name} is {list(stored)} in its files, {list(wanted)} by its config")
    return model, sorted(found["unexpected_keys"])


def check_weights(source: str | ConfigValues, *, trust_remote_code: bool = False) -> list[str]:
    """Check that a model's files hold all its weights, with the shapes and the ties of its configuration.

    Only tied weights are read; for the others names and shapes are enough.

    Returns:
        A warning if the files hold other weights too: a head of another task, or biases that the configuration turns
        off.

    Raises:
        BackboneError: in one line.
    """
    if isinstance(source, dict):
        return []
    try:
        model, unknown = load_all_weights(source, trust_remote_code=trust_remote_code, device_map="meta")
        check_tied(model, source)
    except (OSError, RuntimeError, ImportError, SafetensorError) as error:
        raise BackboneError(f"model {source!r}: {' '.join(str(error).split())[:300]}") from None
    if not unknown:
        return []
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return [f"model {source!r}: its files hold {unknown[0]}{more}, which {type(model).__name__} does not use"]
