"""A backbone whose folder has its own code, which runs only with trust_remote_code."""

import json
import sys
from pathlib import Path

import pytest
from tiny import LLAMA, make_settings
from transformers import dynamic_module_utils

from hmt_ds.backbones import BackboneError, LoraSettings, check_adapters, check_backbone, read_config
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.skeleton import skeleton

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class MyConfig(LlamaConfig):
    model_type = "my_llama"


class MyForCausalLM(LlamaForCausalLM):
    config_class = MyConfig
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Make a folder of such a model; transformers' copies of its code are removed afterwards."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    found = tmp_path / "my_model"
    found.mkdir()
    (found / "modeling_my.py").write_text(CODE)
    code = {"AutoConfig": "modeling_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyForCausalLM"}
    (found / "config.json").write_text(json.dumps(LLAMA | {"model_type": "my_llama", "auto_map": code}))
    return found


def test_let_in(folder):
    """The one-layer model of the checks is built with the folder's code too."""
    config = read_config(str(folder), trust_remote_code=True)
    assert config.model_type == "my_llama" and type(config).__name__ == "MyConfig"
    check_backbone(config)
    check_adapters(config, LoraSettings(target_modules=["q_proj"]))
    with pytest.raises(BackboneError, match="no_such_layer"):
        check_adapters(config, LoraSettings(target_modules=["no_such_layer"]))


def test_refused_without_the_users_word(folder):
    with pytest.raises(BackboneError, match=r"my_model.*: it has its own code.*set it if you trust it") as error:
        read_config(str(folder))
    assert "\n" not in str(error.value)


def test_not_converted(folder):
    """Such a model is not converted: the folder would lack its code."""
    config = read_config(str(folder), trust_remote_code=True)
    with pytest.raises(ConversionError) as error:
        skeleton(config, make_settings())
    assert str(error.value) == "my_llama cannot be converted: it has its own code (model.trust_remote_code)"
