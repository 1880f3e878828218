"""The undocumented parts of transformers that are used exist in the installed version, and are used in one file."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny import LLAMA
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel, integrations, masking_utils
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import cached_file, hub

from hmt_ds.backbones import build_model, read_config
from hmt_ds.backbones.transformers_internals import (
    build_under_zero_init,
    causal_lm_class,
    find_file,
    ignore_weights,
    is_recurrent,
    sequences_in_rows,
    set_tied_weights,
    tied_weights,
)

ROOT = Path(__file__).parents[2]
INTERNALS = {
    "masking_utils",
    "find_packed_sequence_indices",
    "is_tracing",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "_model_mapping",
    "_keys_to_ignore_on_load_unexpected",
    "_is_stateful",
    "all_tied_weights_keys",
    "_raise_exceptions_for_missing_entries",
    "HfDeepSpeedConfig",
    "transformers_modules",
}


def names_in(file: Path) -> set[str]:
    """Every identifier, attribute, keyword, imported name and string of a file, in the order of its syntax tree."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        fields = (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "value"))
        found.update(value for value in fields if isinstance(value, str))
    return found


def test_internals_are_touched_in_one_file():
    users = {file.name for file in ROOT.glob("hmt_ds/**/*.py") if names_in(file) & INTERNALS}
    assert users == {"transformers_internals.py"}


@pytest.mark.parametrize("name", ["find_packed_sequence_indices", "is_tracing"])
def test_masks_are_built_with_the_functions_that_are_replaced(name):
    """They exist, the module calls them by these global names, and they come back afterwards."""
    before = getattr(masking_utils, name)
    callers = [f for _, f in inspect.getmembers(masking_utils, inspect.isfunction) if f is not before]
    assert any(name in f.__code__.co_names for f in callers)
    with sequences_in_rows():
        assert getattr(masking_utils, name) is not before
    assert getattr(masking_utils, name) is before


def test_unexpected_weights_can_be_ignored():
    config = read_config(LLAMA)
    assert causal_lm_class(config) is MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    assert PreTrainedModel._keys_to_ignore_on_load_unexpected is None
    with ignore_weights(config, "^hmt"):
        assert causal_lm_class(config)._keys_to_ignore_on_load_unexpected == ["^hmt"]
    assert causal_lm_class(config)._keys_to_ignore_on_load_unexpected is None
    assert "_keys_to_ignore_on_load_unexpected" in inspect.getsource(PreTrainedModel)


def test_recurrent_models_say_so():
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2}
    models = (build_model({"model_type": kind} | sizes, dtype=None).model for kind in ("mamba", "rwkv"))
    assert all(is_recurrent(model) for model in models) and not is_recurrent(build_model(LLAMA, dtype=None).model)


def test_tied_weights_are_named():
    model = build_model(LLAMA | {"tie_word_embeddings": True}, dtype=None).model
    assert tied_weights(model) == {"lm_head.weight": "model.embed_tokens.weight"}
    set_tied_weights(model, {})
    assert tied_weights(model) == {}


def test_files_that_may_be_missing(tmp_path):
    (tmp_path / "here").touch()
    assert find_file(str(tmp_path), "here") == tmp_path / "here"
    assert find_file(str(tmp_path), "missing") is None
    assert "_raise_exceptions_for_missing_entries" in inspect.signature(hub.cached_files).parameters
    with pytest.raises(OSError, match="missing"):
        cached_file(str(tmp_path), "missing")


def test_models_are_built_under_zero_init():
    """While the configuration object lives, and no longer."""
    assert hasattr(integrations, "HfDeepSpeedConfig")
    with build_under_zero_init({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}):
        assert is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()


def test_the_version_is_bounded_by_the_tested_series():
    """`setup.py` allows nothing beyond the release series of `launch/constraints.txt`."""
    (line,) = re.findall(r'"(transformers>=.*)"', (ROOT / "setup.py").read_text())
    (tested,) = re.findall(r"^transformers==(\d+)\.(\d+)\.\d+$", (ROOT / "launch/constraints.txt").read_text(), re.M)
    major, minor = map(int, tested)
    allowed = Requirement(line).specifier
    assert f"{major}.{minor}.99" in allowed
    assert f"{major}.{minor + 1}.0" not in allowed
