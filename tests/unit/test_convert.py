"""Conversion of HMT-pytorch's weights and of LoRA adapters; code in a file is never run."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import hmt_ds
from hmt_ds.backbones import check_memory
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.convert import convert
from hmt_ds.conversion.convert_options import ConvertOptions
from hmt_ds.conversion.pickles import read_pickle
from hmt_ds.conversion.remote_code import remote_code
from hmt_ds.conversion.shards import plan_shards, write_shards
from hmt_ds.conversion.weights import folder_weights, tensor_weights
from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.build_hmt import build_hmt

PARITY = Path(__file__).parents[1] / "parity"
sys.path.insert(0, str(PARITY))
import run_case  # noqa: E402

CASES = sorted((PARITY / "cases").glob("*.safetensors"))
BASIC = PARITY / "cases" / "hmt_basic.safetensors"


class Payload:
    """An object in a pickle whose unpickling writes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def make_backbone(folder: Path, case: dict[str, Any]) -> Path:
    """Make a folder with the configuration of a case's backbone."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(case["backbone_config"]))
    return folder


def weights_of(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a case, by the reference's names."""
    return {name.removeprefix("weight."): x.contiguous() for name, x in stored.items() if name.startswith("weight.")}


def sizes(case: dict[str, Any]) -> tuple[str, ...]:
    """Return the settings that a state dict does not contain, for the command line."""
    keys = ("segment_length", "sensory_tokens", "cached_memories", "summary_fraction")
    return tuple(word for key in keys for word in (f"--memory.{key}", str(case[key])))


def options_for(case: dict[str, Any], backbone: Path, **more: Any) -> tuple[ConvertOptions, tuple[str, ...]]:
    """Return options and overrides for the conversion of a case."""
    return ConvertOptions(backbone=str(backbone), **more), sizes(case)


@pytest.fixture
def basic(tmp_path) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """Return one case: its settings, state dict and backbone's folder."""
    case, stored = run_case.read_case(BASIC)
    return case, weights_of(stored), make_backbone(tmp_path / "backbone", case)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_reference_weights(file, tmp_path, monkeypatch):
    """The converted model gives the reference's logits, gradients and continuation."""
    case, stored = run_case.read_case(file)
    torch.save(weights_of(stored), tmp_path / "model.pth")
    backbone = make_backbone(tmp_path / "backbone", case)
    convert(tmp_path / "model.pth", tmp_path / "hf", *options_for(case, backbone))
    # the cases are float64, the folder is float32: restore the digits that it lost
    monkeypatch.setattr(run_case, "build", lambda case, stored: restored(tmp_path / "hf", stored))
    assert max(run_case.run_case(file).values()) <= run_case.TOLERANCE


def test_the_papers_second_stage_begins_with_the_first(tmp_path):
    """A run of mode hmt starts from weights of mode rmt: the recall is random, everything else is loaded."""
    case, stored = run_case.read_case(BASIC.with_stem("rmt_stage_one"))
    torch.save(weights_of(stored), tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "hf", *options_for(case, make_backbone(tmp_path / "backbone", case)))
    first = load_file(tmp_path / "hf/model.safetensors")
    stored = MemorySettings(**json.loads((tmp_path / "hf/config.json").read_text())["memory"])
    memory = replace(stored, mode="hmt", recall_dim=8)
    check_memory(str(tmp_path / "hf"), memory)
    second = dict(build_hmt(str(tmp_path / "hf"), memory, ds_config={}).named_parameters(remove_duplicate=False))
    assert "hmt.initial_prompt.embeddings.weight" in first and "hmt.summary_prompt.embeddings.weight" not in first
    for name, weight in first.items():
        assert torch.equal(second[name.removeprefix("hmt.")], weight), name
    assert all(second[f"{name}.weight"].std() > 0 for name in ("summary_prompt.embeddings", "recall.query"))


def restored(folder: Path, stored: dict[str, Tensor]) -> Any:
    """Load our model in float64, after checking that each weight is the case's in float32."""
    model = hmt_ds.load_pretrained(folder)
    model = model.double()
    weights = {run_case.ours(name): tensor for name, tensor in weights_of(stored).items()}
    for names, parameter in run_case.aliases(model).items():
        exact = next(weights[name] for name in names if name in weights)
        assert torch.equal(parameter.data.float(), exact.float()), names
        parameter.data.copy_(exact)
    return model


def test_parts_and_types(basic, tmp_path):
    case, weights, backbone = basic
    torch.save(weights, tmp_path / "model.pth")
    for what, file in (("backbone", "model"), ("memory", "memory"), ("model", "model")):
        for dtype in ("bf16", "fp32"):
            target = tmp_path / f"{what}-{dtype}"
            convert(tmp_path / "model.pth", target, *options_for(case, backbone, what=what, dtype=dtype))
            found = load_file(target / f"{file}.safetensors")
            assert {w.dtype for w in found.values()} == {torch.bfloat16 if dtype == "bf16" else torch.float32}
    # a converted folder can be converted again
    convert(tmp_path / "model-fp32", tmp_path / "again", ConvertOptions(what="memory"))
    one, two = load_file(tmp_path / "again/memory.safetensors"), load_file(tmp_path / "memory-fp32/memory.safetensors")
    assert len(one) == 4 and one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    plain = json.loads((tmp_path / "backbone-fp32/config.json").read_text())
    assert plain["model_type"] == case["backbone_config"]["model_type"] and "auto_map" not in plain


@pytest.mark.parametrize("broken", ["missing", "shape", "no_size", "no_backbone", "wrong_key"])
def test_what_does_not_fit(broken, basic, tmp_path):
    case, weights, backbone = basic
    options = options_for(case, backbone)
    said = {
        "missing": "the weight initial_prompt.embeddings.weight is missing in",
        "shape": "has the shape [3, 5] in the files",
        "no_size": "--memory.segment_length: missing",
        "no_backbone": "does not name its backbone",
        "wrong_key": "takes only --memory keys and --lora.alpha",
    }[broken]
    if broken == "missing":
        del weights["memory_cell.memory"]
    if broken == "shape":
        weights["mem"] = torch.zeros(3, 5)
    if broken == "no_size":
        options = (ConvertOptions(backbone=str(backbone)), ())
    if broken == "no_backbone":
        options = (ConvertOptions(), sizes(case))
    if broken == "wrong_key":
        options = (ConvertOptions(backbone=str(backbone)), (*sizes(case), "--model.train", "frozen"))
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")) as error:
        convert(tmp_path / "model.pth", tmp_path / "hf", *options)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "hf").exists()


def poisoned(folder: Path, kind: str, payload: Payload) -> Path:
    """Make a checkpoint of each format with code in it."""
    tensor = {"w": torch.zeros(2)}
    source = folder / "source"
    if kind == "pth":
        torch.save({"mem": payload} | tensor, folder / "source.pth")
        return folder / "source.pth"
    if kind == "bare_pickle":
        (folder / "source.pth").write_bytes(pickle.dumps(payload))
        return folder / "source.pth"
    source.mkdir()
    if kind == "hugging_face":
        (source / "config.json").write_text(json.dumps({"model_type": "hmt", "backbone": {"model_type": "gpt2"}}))
        config = {"mode": "backbone", "segment_length": 4, "recall_dim": 1}
        content = {"model_type": "hmt", "backbone": {"model_type": "gpt2", "n_layer": 1}, "memory": config}
        (source / "config.json").write_text(json.dumps(content))
        torch.save({"mem": payload} | tensor, source / "pytorch_model.bin")
    if kind.startswith("zero"):
        state = {"module": tensor, "buffer_names": [], "param_shapes": [], "shared_params": {}, "ds_version": "0"}
        poison = {"optimizer_state_dict": {"zero_stage": 1, "partition_count": 1, "x": payload}}
        torch.save(state | ({"x": payload} if kind == "zero_model" else {}), source / "mp_rank_00_model_states.pt")
        if kind == "zero_optimizer":
            torch.save(poison, source / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    if kind == "universal":
        (source / "zero" / "mem").mkdir(parents=True)
        torch.save({"param": payload}, source / "zero" / "mem" / "fp32.pt")
    return source


@pytest.mark.parametrize("kind", ["pth", "bare_pickle", "hugging_face", "zero_model", "zero_optimizer", "universal"])
def test_code_is_refused_and_not_run(kind, tmp_path):
    mark = tmp_path / "ran"
    source = poisoned(tmp_path, kind, Payload(mark))
    with pytest.raises(ConversionError, match="refused, because it could run any code") as error:
        convert(source, tmp_path / "hf", ConvertOptions())
    assert len(str(error.value).splitlines()) == 1
    assert not mark.exists() and not (tmp_path / "hf").exists()
    if kind == "pth":  # check that the payload works
        torch.load(source, weights_only=False)
        assert mark.exists()


LLAMA = {"model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}


@pytest.fixture
def adapted(tmp_path) -> Any:
    """A backbone with the adapters of HMT-pytorch's scripts, without memory; it is saved to a file."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**LLAMA)
    config.save_pretrained(tmp_path / "backbone")
    targets = ["embed_tokens", "gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=8, lora_alpha=32, lora_dropout=0.1)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), lora).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    torch.save({f"memory_cell.model.{name}": weight for name, weight in model.state_dict().items()}, tmp_path / "pth")
    return model


def test_reference_adapters(adapted, tmp_path):
    """Merged weights give the logits of peft's model."""
    words = ("--memory.mode", "backbone", "--memory.segment_length", "8", "--memory.sensory_tokens", "0")
    options = ConvertOptions(what="backbone", backbone=str(tmp_path / "backbone"))
    said = convert(tmp_path / "pth", tmp_path / "hf", options, words)
    assert said[0] == "LoRA adapters are merged into the weights, with alpha 32: --lora.alpha changes it"
    ids = torch.arange(40)[None]
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(ids).logits
    torch.testing.assert_close(found, adapted(ids).logits, rtol=0, atol=1e-5)
    with adapted.disable_adapter():
        assert (adapted(ids).logits - found).abs().max() > 0.1
    convert(tmp_path / "pth", tmp_path / "less", options, (*words, "--lora.alpha", "16"))
    less = AutoModelForCausalLM.from_pretrained(tmp_path / "less").eval()(ids).logits
    assert (less - found).abs().max() > 0.01


def test_adapters_on_tied_weights_are_refused(adapted, tmp_path):
    config = AutoConfig.for_model(**LLAMA | {"tie_word_embeddings": True})
    config.save_pretrained(tmp_path / "backbone")
    words = ("--memory.mode", "backbone", "--memory.segment_length", "8", "--memory.sensory_tokens", "0")
    options = ConvertOptions(what="backbone", backbone=str(tmp_path / "backbone"))
    with pytest.raises(ConversionError, match=r"embed_tokens\.weight has an adapter and is tied"):
        convert(tmp_path / "pth", tmp_path / "hf", options, words)


class Reduced:
    """An object that is pickled as a call."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def test_enums_of_older_pythons(tmp_path):
    """Enums pickled as getattr(kind, name) are read for DeepSpeed's own enum and refused for others."""
    torch.save({"stage": Reduced(getattr, ZeroStageEnum, "gradients")}, tmp_path / "enum")
    assert read_pickle(tmp_path / "enum") == {"stage": ZeroStageEnum.gradients}
    for number, call in enumerate([(getattr, torch.Tensor, "tolist"), (getattr, ZeroStageEnum, "mro")]):
        torch.save({"stage": Reduced(*call)}, tmp_path / f"other_{number}")
        with pytest.raises(ConversionError, match=r"refused|cannot be read"):
            read_pickle(tmp_path / f"other_{number}")


def test_shards(tmp_path):
    """Several shards with an index are read back as one model."""
    given = {f"layer.{n}": torch.randn(100, 10) for n in range(5)}
    assert len(plan_shards(tensor_weights(given), torch.float32, "model", "9KB")) == 3
    write_shards(tmp_path, tensor_weights(given), torch.float32, "model", "9KB")
    found = folder_weights(tmp_path)
    assert found.shapes.keys() == given.keys() and all(torch.equal(found.read(name), x) for name, x in given.items())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"model-00002-of-00003\.safetensors, named by .*, is missing"):
        folder_weights(tmp_path)


def test_what_is_written_is_compared(tmp_path, monkeypatch):
    """A written file that differs from the source is an error."""
    reads = iter([torch.zeros(3), torch.ones(3)])
    weights = tensor_weights({"w": torch.zeros(3)})
    monkeypatch.setattr(type(weights), "read", None, raising=False)
    object.__setattr__(weights, "read", lambda name: next(reads))
    with pytest.raises(ConversionError, match="w differs from what was written"):
        write_shards(tmp_path, weights, torch.float32, "model")


def test_remote_code_stands_alone():
    """The code in a converted folder does not import hmt_ds."""
    files = remote_code()
    assert "modeling_hmt.py" in files and "hmt_memory_cell.py" in files
    for name, source in files.items():
        assert "from hmt_ds" not in source and "\nimport hmt_ds" not in source, name
