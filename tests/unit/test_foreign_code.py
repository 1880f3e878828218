"""A backbone whose folder has its own code, which runs only with trust_remote_code."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from bad_folder import errors_in, make_folder
from tiny import LLAMA, make_settings
from transformers import dynamic_module_utils

from hmt_ds import cli
from hmt_ds.backbones import BackboneError, LoraSettings, check_adapters, check_backbone, read_config
from hmt_ds.config.load import load_recipe
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.skeleton import skeleton

RESUME = ("--checkpoint.resume", "auto")
CODE = """
import os
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(os.environ["HOME"], "code_ran").touch()


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
    monkeypatch.setenv("HOME", str(tmp_path))
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
    with pytest.raises(BackboneError, match=r"my_model.*: it has its own code.*give it if you trust it") as error:
        read_config(str(folder))
    assert "\n" not in str(error.value)


def test_not_converted(folder):
    """Such a model is not converted: the folder would lack its code."""
    config = read_config(str(folder), trust_remote_code=True)
    with pytest.raises(ConversionError) as error:
        skeleton(config, make_settings())
    assert str(error.value).startswith("my_llama cannot be converted: it has its own code (model.trust_remote_code)")


@pytest.fixture(params=["my_llama", "llama"])
def run(folder, request, tmp_path) -> Path:
    """Another person's run, whose recipe allows the code of its backbone; also of a type that transformers knows."""
    make_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": request.param, "vocab_size": 300}))
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["model"] |= {"source": str(folder), "trust_remote_code": True, "train": "lora"}
    recipe["data"]["validation"] = recipe["data"]["train"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "run"


def command(monkeypatch, *words: object) -> list[str]:
    """Run a command up to the start of its ranks; return their words."""
    started: list[str] = []
    monkeypatch.setattr("hmt_ds.launch.start.run_ranks", lambda module, words, ranks: started.extend(words) or 0)
    monkeypatch.setattr(sys, "argv", ["hmt-ds", *map(str, words)])
    with pytest.raises(SystemExit):
        cli.main()
    return started


@pytest.mark.parametrize(
    "words",
    [["evaluate", ""], ["evaluate", "recipe.yaml"], ["bench", ""], ["train", "", "--checkpoint.resume", "auto"]],
)
def test_a_runs_recipe_cannot_allow_its_code(run, monkeypatch, capsys, words):
    """Neither in the checks nor in the ranks."""
    monkeypatch.chdir(run.parent)
    name, file, *more = words
    started = command(monkeypatch, name, run / file, *more)
    assert not (run.parent / "code_ran").exists()
    assert (
        not started
        or not load_recipe(
            run / "recipe.yaml", started[started.index("--model.trust_remote_code") :]
        ).model.trust_remote_code
    )
    capsys.readouterr()
    command(monkeypatch, name, run / file, *more, "--model.trust_remote_code", "true")
    assert (run.parent / "code_ran").exists(), capsys.readouterr()


def test_convert_never_runs_it(run, monkeypatch, capsys):
    (run / "checkpoints").mkdir()
    monkeypatch.setattr("hmt_ds.conversion.from_run.find_checkpoint", lambda source, notes: (source / "x", source))
    command(monkeypatch, "convert", run, run / "new", "--what", "adapter")
    errors = errors_in(capsys.readouterr().err)
    assert len(errors) == 1 and "my_model cannot be converted: it has its own code" in errors[0], errors
    assert not (run.parent / "code_ran").exists()
