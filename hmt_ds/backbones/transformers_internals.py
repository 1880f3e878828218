"""Access to undocumented parts of transformers, each behind a small function.

Only this file uses parts of transformers that may change without notice: `setup.py` bounds the version, and
`tests/unit/test_transformers_internals.py` checks that the installed version has all of them.

Converted folders carry a copy of this file, so it imports only torch and transformers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel, masking_utils
from transformers.utils import cached_file

# what transformers and accelerate read from a model's children, besides the tied weights
PROPERTIES = (
    *("_no_split_modules", "_skip_keys_device_placement"),
    *("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"),
)


@contextmanager
def sequences_in_rows(sequences: Tensor | None = None) -> Iterator[None]:
    """Tell transformers in the ``with`` block which sequences are packed into each row, so that it need not search.

    transformers' search compares positions in every forward pass, which makes the GPU wait for the host. While a CUDA
    graph is captured it would also build full attention masks, which rule out flash attention; this is disabled too.

    Args:
        sequences: ``[rows, positions]``, number of each position's sequence; None for one sequence per row.
    """
    saved = {name: getattr(masking_utils, name) for name in ("find_packed_sequence_indices", "is_tracing")}
    masking_utils.find_packed_sequence_indices = lambda positions: sequences
    masking_utils.is_tracing = lambda tensor=None: False
    try:
        yield
    finally:
        for name, function in saved.items():
            setattr(masking_utils, name, function)


def causal_lm_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the model class that ``AutoModelForCausalLM`` would choose for a configuration."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@contextmanager
def ignore_weights(config: PreTrainedConfig, pattern: str) -> Iterator[None]:
    """Let ``from_pretrained``, in the ``with`` block, skip stored weights that the model lacks without reporting them.

    transformers has no argument for that: it reads the patterns from an attribute of the model's class.

    Args:
        config: configuration of the model to load, which determines the class.
        pattern: regular expression for the names of the weights to skip.
    """
    model_class = causal_lm_class(config)
    saved = model_class._keys_to_ignore_on_load_unexpected
    model_class._keys_to_ignore_on_load_unexpected = [*(saved or ()), pattern]
    try:
        yield
    finally:
        model_class._keys_to_ignore_on_load_unexpected = saved


def tied_weights(model: PreTrainedModel) -> dict[str, str]:
    """Return a model's tied weights: a map from each name to the name of the weight that it shares values with."""
    return model.all_tied_weights_keys


def set_tied_weights(module: nn.Module, tied: dict[str, str]) -> None:
    """Set which weights transformers ties when it loads a module.

    Args:
        module: the module.
        tied: a map from the name of each tied weight to the name of the weight that it shares values with.
    """
    module.all_tied_weights_keys = tied  # type: ignore[assignment]


def adopt_properties(module: nn.Module, model: PreTrainedModel, *, prefix: str) -> None:
    """Copy the properties that transformers and accelerate need for loading from a model to a module that wraps the
    model.

    They read them from the children of the model that they load: tied weights, modules that must stay on one device,
    and modules that must stay in float32.

    Args:
        module: the wrapping module, a child of another transformers model.
        model: the wrapped transformers model.
        prefix: what precedes the names of ``model``'s weights in ``module``.
    """
    set_tied_weights(module, {f"{prefix}{name}": f"{prefix}{kept}" for name, kept in tied_weights(model).items()})
    for name in PROPERTIES:
        setattr(module, name, getattr(model, name))


def is_recurrent(model: PreTrainedModel) -> bool:
    """Return whether a model carries a state from position to position, as Mamba and RWKV do."""
    return model._is_stateful


def find_file(source: str, name: str) -> Path | None:
    """Return the path of a file in a model's folder or hub repository, downloading it if needed; None if it is absent.

    Args:
        source: a folder or a hub name.
        name: name of the file.
    """
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def has_own_code(config: PreTrainedConfig) -> bool:
    """Return whether a configuration's class was imported from the model's folder (``trust_remote_code``).

    transformers imports such code into a package ``transformers_modules``.
    """
    return type(config).__module__.startswith("transformers_modules")


@contextmanager
def build_under_zero_init(ds_config: dict[str, object]) -> Iterator[None]:
    """Let transformers build models inside ``zero.Init`` in the ``with`` block, so that their weights are sharded at
    once.

    transformers keeps a weak reference to the configuration object and looks it up in every ``from_config`` and
    ``from_pretrained``, so the object lives exactly as long as the ``with`` block.

    Args:
        ds_config: a DeepSpeed configuration of ZeRO-3.
    """
    from transformers.integrations import HfDeepSpeedConfig

    active = HfDeepSpeedConfig(ds_config)
    try:
        yield
    finally:
        del active
