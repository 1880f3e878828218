"""DeepSpeed's files: filled without a rest, accepted by DeepSpeed, and never in silent contradiction to the recipe."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from deepspeed.runtime import constants
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from hmt_ds.parallel.deepspeed_config import fill
from hmt_ds.parallel.deepspeed_config.fill import (
    AUTO,
    DeepSpeedConfigError,
    EngineSettings,
    computes_in_autocast,
    fill_ds_config,
    offloads,
    read_ds_config,
    remaining_autos,
    share_on_gpu,
    stage_of,
    with_bucket,
)

FILES = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
PARAMS = {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
SETTINGS = EngineSettings("bf16", 2, 12, 1.0, "AdamW", PARAMS)


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def config(request) -> dict:
    return read_ds_config(request.param)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_filled_without_a_rest(config, precision):
    filled = fill_ds_config(config, replace(SETTINGS, precision=precision))
    assert remaining_autos(filled) == [] and json.dumps(AUTO) not in json.dumps(filled)
    assert filled["train_micro_batch_size_per_gpu"] == 2 and filled["gradient_accumulation_steps"] == 12
    assert filled["gradient_clipping"] == 1.0 and filled["data_types"]["grad_accum_dtype"] == "fp32"
    assert filled["optimizer"]["type"] == "AdamW" and PARAMS.items() <= filled["optimizer"]["params"].items()
    # one way of computing in lower precision, or none
    ways = [filled[key]["enabled"] for key in ("bf16", "fp16", "torch_autocast")]
    assert sum(ways) == (precision != "fp32")


@pytest.mark.parametrize(
    ("device", "params", "in_file", "fused"),
    [
        ("cuda", {}, {}, True),
        ("cuda", {"foreach": False}, {}, None),
        ("cuda", {"fused": False}, {}, False),
        ("cuda", {}, {"fused": False}, False),
        ("cuda", {}, {"torch_adam": False}, None),
        ("cpu", {}, {}, None),
    ],
)
def test_adam_in_one_kernel_on_gpus(monkeypatch, device, params, in_file, fused):
    """Unless it was said how its step is computed."""
    monkeypatch.setattr(fill, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: device))
    config = {"zero_optimization": {"stage": 2}, "optimizer": {"type": "auto", "params": in_file or AUTO}}
    filled = fill_ds_config(config, replace(SETTINGS, optimizer_params=PARAMS | params))
    assert filled["optimizer"]["params"].get("fused") is fused


def test_deepspeed_accepts_it(config):
    """By DeepSpeed's own reading, the values are what the file and the recipe say."""
    read = DeepSpeedConfig(fill_ds_config(config, SETTINGS))
    assert read.zero_optimization_stage == stage_of(config)
    assert read.gradient_accumulation_steps == 12 and read.gradient_clipping == 1.0
    assert read.bfloat16_config.enabled == (not computes_in_autocast(config, "bf16"))
    assert (read.zero_config.offload_optimizer is not None) == offloads(config)


@pytest.mark.parametrize(
    ("given", "trained", "once", "size"),
    [
        (None, 100, False, 100),
        (None, 100, True, 100),
        (None, 7 * 10**9, False, 5 * 10**8),
        (None, 7 * 10**9, True, 2 * 10**8),
        (10**9, 100, True, 10**9),
    ],
)
def test_buckets_are_no_larger_than_what_goes_into_them(given, trained, once, size):
    """Unless the file says so; DeepSpeed's own size is the most."""
    config = {"zero_optimization": {"stage": 2} | ({} if given is None else {"reduce_bucket_size": given})}
    filled = with_bucket(fill_ds_config(config, SETTINGS), trained, once=once)
    assert DeepSpeedConfig(filled).zero_config.reduce_bucket_size == size


@pytest.mark.parametrize(
    ("stage", "optimizer", "ratio", "said"),
    [
        (3, "AdamW", 0.7, None),
        (3, "SGD", 1.0, None),
        (
            3,
            "SGD",
            0.7,
            "offload_optimizer.ratio is 0.7, but DeepSpeed can split only Adam and AdamW, not SGD: leave it out",
        ),
        (
            2,
            "AdamW",
            0.7,
            "offload_optimizer.ratio is 0.7, but DeepSpeed offloads a part only at ZeRO stage 3: leave it out",
        ),
    ],
)
def test_a_part_of_the_optimizer(stage, optimizer, ratio, said):
    """DeepSpeed ends in an assertion, or passes over the key."""
    config = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu", "ratio": ratio}}}
    settings = replace(SETTINGS, optimizer=optimizer, optimizer_params={"lr": 1e-3})
    if said is None:
        fill_ds_config(config, settings)
    else:
        with pytest.raises(DeepSpeedConfigError, match=said):
            fill_ds_config(config, settings)


def test_holds_deepspeed_keys_only(config):
    """DeepSpeed ignores a top-level key that it does not know: a slip of the pen would do nothing, and say nothing."""
    strings = {value for name, value in vars(constants).items() if name.isupper() and isinstance(value, str)}
    known = strings | {"zero_optimization", "torch_autocast", "zero_force_ds_cpu_optimizer", "aio"}
    assert set(config) <= known
    fields = DeepSpeedZeroConfig.model_fields
    aliases = {field.alias for field in fields.values() if field.alias}
    assert set(config["zero_optimization"]) <= set(fields) | aliases


def test_a_strange_key_would_be_seen():
    strings = {value for name, value in vars(constants).items() if name.isupper() and isinstance(value, str)}
    assert "gradient_cliping" not in strings and "gradient_clipping" in strings


def test_stage_is_what_the_name_says(config, request):
    name = request.node.callspec.id
    assert f"zero{stage_of(config)}" in name and offloads(config) == name.endswith("offload")


def test_the_file_is_not_changed(config):
    before = json.dumps(config)
    fill_ds_config(config, SETTINGS)
    assert json.dumps(config) == before


def test_contradictions_are_all_listed():
    config = read_ds_config(FILES[0])
    config |= {"gradient_clipping": 5.0, "train_micro_batch_size_per_gpu": 3, "bf16": {"enabled": False}}
    config["optimizer"] = {"type": "Adam", "params": {"lr": 0.5}}
    config["zero_optimization"] = {"stage": 2, "reduce_bucket_size": AUTO}
    with pytest.raises(DeepSpeedConfigError) as error:
        fill_ds_config(config, SETTINGS)
    lines = str(error.value).splitlines()
    starts = [
        "train_micro_batch_size_per_gpu is 3 in the DeepSpeed file and 2 by the recipe",
        "gradient_clipping is 5.0",
        "bf16.enabled is False in the DeepSpeed file and True by the recipe",
        "optimizer.type is 'Adam'",
        "optimizer.params.lr is 0.5",
        "zero_optimization.reduce_bucket_size is auto",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines


ZERO_2 = {"stage": 2}
OF_THE_BATCH = "training.batch_size, training.gradient_accumulation and the number of ranks decide it, leave it out"


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        (
            {"zero_optimization": {"offload_optimizer": "cpu", "offload_param": True}},
            [
                'zero_optimization.offload_optimizer must be a section like {...}, not "cpu"',
                "zero_optimization.offload_param must be a section like {...}, not true",
            ],
        ),
        ({"optimizer": {"type": "auto", "params": None}}, ["optimizer.params must be a section like {...}, not null"]),
        ({"optimizer": {"type": "auto", "params": "x"}}, ['optimizer.params must be a section like {...}, not "x"']),
        (
            {"zero_optimization": {"stage": "3", "offload_optimizer": {"device": "cpu", "ratio": "0.5"}}},
            [
                "zero_optimization.stage is '3': must be a number, without quotes",
                "zero_optimization.offload_optimizer.ratio is '0.5': must be a number, without quotes",
                "zero_optimization.offload_optimizer.ratio is 0.5, but DeepSpeed offloads a part only at ZeRO stage 3",
            ],
        ),
        ({"train_batch_size": 64}, [f"train_batch_size: {OF_THE_BATCH}"]),
        (
            {"train_batch_size": "auto", "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}},
            [f"train_batch_size: {OF_THE_BATCH}", "scheduler: the recipe's section schedule decides it, leave it out"],
        ),
        ({"zero": {"stage": 3}}, ["zero: unknown key; did you mean zero_optimization?"]),
        (
            {"gradient_cliping": 1.0, "nothing_like_it": 1},
            [
                "gradient_cliping: unknown key; did you mean gradient_clipping?",
                "nothing_like_it: unknown key; leave it out",
            ],
        ),
        ({"elasticity": {"enabled": True}}, ["DeepSpeed refuses the file: Elastic training has been removed"]),
        ({"compile": {"deepcompile": "never"}}, ["DeepSpeed refuses the file: 1 validation error for CompileConfig"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else None,
)
def test_what_would_end_a_rank_or_do_nothing(config, lines):
    with pytest.raises(DeepSpeedConfigError) as error:
        fill_ds_config({"zero_optimization": ZERO_2} | config, SETTINGS)
    said = str(error.value).splitlines()
    assert len(said) == len(lines) and all(map(str.startswith, said, lines)), said


@pytest.mark.parametrize(
    "config",
    [
        {"zero_optimization": ZERO_2 | {"offload_optimizer": None, "offload_param": None}},
        {"zero_optimization": ZERO_2, "flops_profiler": {"enabled": True}, "aio": {}, "wandb": {"enabled": False}},
        {"zero_optimization": ZERO_2, "optimizer": {"params": {}}, "communication_data_type": "fp32"},
    ],
)
def test_what_deepspeed_knows_may_be_there(config):
    filled = fill_ds_config(config, SETTINGS)
    assert filled.items() >= {key: config[key] for key in config if key != "optimizer"}.items()
    assert not offloads(filled) and share_on_gpu(filled) == 1.0


def test_steps_that_are_not_finite_cannot_be_taken_unseen():
    config = {"zero_optimization": {"stage": 2, "compute_grad_norm": False}, "bf16": {"check_grad_overflow": False}}
    with pytest.raises(DeepSpeedConfigError) as error:
        fill_ds_config(config, SETTINGS)
    first, second = str(error.value).splitlines()
    assert first.startswith("bf16.check_grad_overflow is false: steps whose gradients are not finite would be taken")
    assert second.startswith("zero_optimization.compute_grad_norm is false")


def test_what_agrees_with_the_recipe_may_be_written_out():
    config = read_ds_config(FILES[0]) | {"gradient_clipping": 1.0, "gradient_accumulation_steps": 12}
    assert fill_ds_config(config, SETTINGS)["gradient_clipping"] == 1.0


def test_what_is_missing_is_filled_as_auto_is():
    """A file need not list what the recipe decides."""
    assert fill_ds_config({"zero_optimization": {"stage": 2}}, SETTINGS)["gradient_accumulation_steps"] == 12


@pytest.mark.parametrize("text", ["[1]", "{", "\x00", None])
def test_unreadable(tmp_path, text):
    file = tmp_path / "file.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DeepSpeedConfigError, match=r"file\.json: ") as error:
        read_ds_config(file)
    assert len(str(error.value).splitlines()) == 1
