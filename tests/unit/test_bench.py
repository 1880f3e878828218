"""`hmt-ds bench`: phase clock, FLOPs and rates, memory by use, errors. Runs are in tests/distributed."""

import subprocess
import sys
import types
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from tiny import make_settings

from hmt_ds.backbones import read_config
from hmt_ds.benchmark.bench_options import BenchOptions
from hmt_ds.benchmark.footprint import bytes_within
from hmt_ds.benchmark.measure import Bench, TimedStep, random_windows, speeds
from hmt_ds.benchmark.run import steps_of
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.config.options import parse_options, words_of
from hmt_ds.memory import MemorySettings, RecomputePlan
from hmt_ds.planning.flops import rates, repeated_positions
from hmt_ds.preflight.prepare import prepare
from hmt_ds.reporting import phase_clock as clock_module
from hmt_ds.reporting.phase_clock import PhaseClock

PROJECT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
LLAMA = {"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "max_position_embeddings": 64}


@pytest.fixture
def moments(monkeypatch):
    """The time that the clock reads, set by hand."""
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    return now


def test_clock_sums_repeated_and_nested_phases(moments):
    clock = PhaseClock(CPU)
    moments[0] = 1  # one second before anything
    with clock("forward"):
        moments[0] = 3
        with clock("recompute"):
            moments[0] = 7
        moments[0] = 8
    with clock("forward"):
        moments[0] = 18
    moments[0] = 20
    assert clock.end() == {"other": 1 + 2, "forward": 2 + 1 + 10, "recompute": 4}


def test_clock_restarts(moments):
    clock = PhaseClock(CPU)
    with clock("forward"):
        moments[0] = 5
    clock.end()
    clock.begin()
    with clock("backward"):
        moments[0] = 6
    assert clock.end() == {"other": 0, "backward": 1}


def test_clock_ignores_other_phases(moments):
    clock = PhaseClock(CPU, only=("step",))
    with clock("forward"):
        moments[0] = 5
    with clock("step"):
        moments[0] = 6
    assert clock.end() == {"other": 5, "step": 1}


def test_clock_survives_an_error(moments):
    clock = PhaseClock(CPU)
    with pytest.raises(ZeroDivisionError), clock("forward"):
        moments[0] = 2
        raise ZeroDivisionError
    moments[0] = 3
    assert clock.end() == {"other": 1, "forward": 2}


# 10 + 2 + 2 x 1 positions a segment, 5 + 2 x 1 a summary
SIZES = MemorySettings(segment_length=10, recall_dim=8, sensory_tokens=2, cached_memories=3)


@pytest.mark.parametrize(
    ("plan", "layers_again", "positions"),
    [
        (RecomputePlan(1, 1, 0), False, 3 * 14 + 4 * 7),  # the last of 4 segments is read once
        (RecomputePlan(3, 1, 0), False, 1 * 14 + 4 * 7),
        (RecomputePlan.keep_all(4), False, 0),
        (RecomputePlan(4, 3, 1), False, 3 * 7),  # batches of 3 and of 1 summaries; the last one is kept
        (RecomputePlan(4, 3, 0), False, 4 * 7),
        (RecomputePlan(9, 9, 9), False, 0),  # more than there is
        (RecomputePlan(1, 1, 0), True, 3 * 14 + 4 * 7 + 4 * (14 + 7)),
    ],
)
def test_recomputed_positions(plan, layers_again, positions):
    assert repeated_positions(SIZES, plan, 4, layers_again=layers_again) == positions


def test_recomputed_positions_without_recall():
    plan = RecomputePlan(1, 1, 0)
    assert repeated_positions(make_settings(mode="rmt"), plan, 4, layers_again=False) == 3 * (6 + 2 + 2)
    assert repeated_positions(make_settings(mode="backbone"), plan, 4, layers_again=False) == 0
    assert repeated_positions(make_settings(mode="backbone"), plan, 4, layers_again=True) == 4 * (6 + 2)


def test_rates():
    found = rates(1000, 0.5, useful=3e12, executed=4e12, peaks={"datasheet": 10e12, "measured": 8e12})
    assert found == {
        "tokens_per_second_per_gpu": 2000,
        "useful_tflops_per_second": 6,
        "executed_tflops_per_second": 8,
        "mfu_datasheet": 0.6,
        "hfu_datasheet": 0.8,
        "mfu_measured": 0.75,
        "hfu_measured": 1.0,
    }


def test_speed_is_that_of_the_median_step():
    steps = [TimedStep(2.0, 1.0, 100, 0.0), TimedStep(9.0, 1.0, 100, 0.0), TimedStep(4.0, 1.5, 100, 0.0)]
    found = speeds(steps, {"useful_flops_per_token": 1e12, "repeated_flops_per_window": 25e12}, 2, {})
    assert found["whole_step"]["seconds"] == 4 and found["whole_step"]["tokens_per_second_per_gpu"] == 25
    assert found["whole_step"]["useful_tflops_per_second"] == 25
    assert found["whole_step"]["executed_tflops_per_second"] == 25 + 2 * 25 / 4
    assert found["forward_and_backward"]["seconds"] == 2.5


def windows(fresh: bool):
    return list(islice(random_windows(2, 3, 4, 50, seed=1, fresh=fresh), 3))


def test_random_documents_are_endless():
    several = windows(fresh=False)
    starts = torch.cat([window.starts for window in several], dim=1)
    assert starts[:, 0].all() and not starts[:, 1:].any()
    ids, labels = (torch.cat([getattr(w, name).flatten(1) for w in several], 1) for name in ("input_ids", "labels"))
    assert torch.equal(ids[:, 1:], labels[:, :-1])  # also from window to window
    assert ids.max() < 50 and len(ids.unique()) > 20 and not torch.equal(ids[0], ids[1])


def test_stages_of_a_pipeline_share_windows(folder):
    """All stages of a pipeline have the same tokens; other pipelines have other ones."""
    recipe, options = load_recipe(folder / "recipe.yaml"), BenchOptions()

    def ids(data_rank: int) -> torch.Tensor:
        module = types.SimpleNamespace(backbone=types.SimpleNamespace(vocabulary=50))
        executor = types.SimpleNamespace(data_rank=data_rank, engine=types.SimpleNamespace(module=module))
        return next(steps_of(recipe, None, options, executor))[0].input_ids

    assert torch.equal(ids(1), ids(1)) and not torch.equal(ids(0), ids(1))


@pytest.mark.parametrize(
    ("kept", "at_once", "segments"), [(1, 1, 16), (15, 4, 16), (16, 8, 24), (30, 16, 32), (31, 16, 32), (32, 16, 48)]
)
def test_a_short_step_has_every_kind_of_work(kept, at_once, segments):
    """One recomputed segment, which the timed steps would otherwise be the first to have, and whole summary batches."""
    executor = types.SimpleNamespace(stages=1, budget=types.SimpleNamespace(plan=RecomputePlan(kept, at_once, 0)))
    assert Bench(executor, iter(())).short == segments


def test_fresh_windows_begin_documents():
    assert all(window.starts[:, 0].all() and not window.starts[:, 1:].any() for window in windows(fresh=True))


def test_storages_count_once():
    whole = torch.zeros(100)
    bucket = types.SimpleNamespace(buffer=torch.zeros(7, dtype=torch.bfloat16))
    seen: set[int] = set()
    assert bytes_within([whole[:10], {"a": [whole[50:], None]}, (torch.zeros(3),)], CPU, seen) == 400 + 12
    assert bytes_within({whole: torch.zeros(2)}, CPU, seen) == 8
    assert bytes_within(torch.zeros(5), torch.device("cuda"), seen) == 0  # not there
    assert bytes_within([bucket, "text"], CPU, seen) == 0  # no bucket of DeepSpeed's


def test_ranks_parse_the_same_options():
    words = ["--steps", "5", "--memory.mode", "rmt", "--fresh", "--json", "a.json", "--reference=clone"]
    options, overrides = parse_options(BenchOptions, words)
    assert overrides == ["--memory.mode", "rmt"]
    assert (options.steps, options.warmup, options.fresh, options.json) == (5, 4, True, Path("a.json"))
    assert parse_options(BenchOptions, [*words_of(options), *overrides]) == (options, overrides)


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["--steps", "0"], ["--steps: must be at least 1, got '0'"]),
        (["--steps", "2.5"], ["--steps: must be a whole number, got '2.5'"]),
        (["--warmup", "-1"], ["--warmup: must be at least 0, got '-1'"]),
        (["--tokens", "text"], ["--tokens: must be 'random' or 'data', got 'text'"]),
        (["--tokens", "data", "--fresh"], ["--fresh: only with --tokens random"]),
        (["--json", "folder"], ["--json: folder is a folder: give a .json file"]),
        (["--trace", "recipe.yaml"], ["--trace: recipe.yaml is a file, give a folder"]),
        (["--steps", "0", "--warmup", "x"], ["--steps: ", "--warmup: "]),
        (["--reference", "nowhere"], ["--reference: nowhere has no modeling_rmt/language_modeling.py"]),
        (["--reference", "nowhere", "--ranks", "2"], ["runs on one GPU, not on 2"]),
        (["--tokens", "data"], ["model.tokenizer: missing"]),
        (["--memory.mode", "htm"], ["memory.mode: must be"]),
    ],
    ids=lambda words: "_".join(words).replace("--", "")[:40],
)
def test_problem_is_one_line(folder, monkeypatch, capsys, words, lines):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "bench", "recipe.yaml", *words])
    monkeypatch.setattr("hmt_ds.launch.start.run_ranks", lambda *arguments: pytest.fail("ranks were started"))
    from hmt_ds import cli

    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and all(line.startswith("error: ") for line in said.splitlines())
    assert all(line in said for line in lines), said


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A recipe without data and tokenizer, and a folder where a file is expected."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = {
        "model": {"source": LLAMA},
        "memory": {"segment_length": 16, "sensory_tokens": 4},
        "data": {"train": {"source": "nowhere.jsonl"}},
        "training": {"output": "run", "steps": 1, "bptt_depth": 2},
        "optimizer": {"lr": 1e-3},
        "deepspeed": "ds_configs/zero2.json",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "folder").mkdir()
    return folder


def test_without_data_all_other_checks_run(folder):
    file = folder / "recipe.yaml"
    assert prepare(load_recipe(file), file, with_data=False).train is None
    with pytest.raises(ConfigError, match="tokenizer: missing"):
        prepare(load_recipe(file), file)
    with pytest.raises(ConfigError) as wrong:
        prepare(load_recipe(file, ["--memory.segment_length", "60", "--deepspeed", "no.json"]), file, with_data=False)
    assert len(wrong.value.problems) == 2 and "positions" in str(wrong.value) and "no.json" in str(wrong.value)


@pytest.mark.parametrize(("name", "parameters"), [("bench-1.1b", 1.1e9), ("bench-6.8b", 6.7e9)])
def test_recipes_have_the_size_in_their_name(name, parameters):
    from transformers import AutoModelForCausalLM

    file = PROJECT / "launch" / "recipes" / f"{name}.yaml"
    recipe = load_recipe(file)
    prepare(recipe, file, with_data=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(recipe.model.source))
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(parameters, rel=0.02)


def test_the_help_needs_no_torch():
    code = "import sys, hmt_ds.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
