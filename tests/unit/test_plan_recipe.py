"""`hmt-ds plan RECIPE`: sizes of models, memory and time by hand, the search, the fitted recipe, the held-out error."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_recipes import BACKBONES

from hmt_ds import cli
from hmt_ds.backbones import read_config
from hmt_ds.config.load import load_recipe
from hmt_ds.memory import MemorySettings
from hmt_ds.planning.cluster import GPUS, Fleet, fleet_of, read_gpus, read_link
from hmt_ds.planning.estimate import estimate
from hmt_ds.planning.known_models import KNOWN_MODELS, known_model
from hmt_ds.planning.layout import Layout, Work
from hmt_ds.planning.memory_parts import memory_of, states
from hmt_ds.planning.model_size import ModelSize, count
from hmt_ds.planning.recipe_plan import own_layout, plan_recipe, warnings_of, work_of
from hmt_ds.planning.search import best_of_each_family, why_it_loses
from hmt_ds.planning.step_time import step_time, window_passes
from hmt_ds.preflight.compute_checks import check_compute
from hmt_ds.preflight.pipeline_checks import check_pipeline
from hmt_ds.preflight.prepare import deepspeed_config

PROJECT = Path(__file__).parents[2]
RECIPES = sorted((PROJECT / "launch" / "recipes").glob("*.yaml"))
SETTINGS = MemorySettings(1024)
# 10 layers of 100 M parameters, a head and an embedding of 50 M each
SIZE = ModelSize(11 * 10**8, 11 * 10**8, 10**8, 10, 100, 1000, 4000, 50_000, 1000)
WORK = Work(SIZE, SETTINGS, depth=8, rows=16)
TWO = fleet_of(2, GPUS["H100"], None, 50e9)


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "plan", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_known_models_have_their_published_sizes(name):
    size = count(read_config(KNOWN_MODELS[name]), MemorySettings(256, mode="backbone"))
    published = BACKBONES[name]
    assert abs(size.parameters / published.parameters - 1) < 0.01
    assert (size.layers, size.hidden_size, size.intermediate_size) == (published.layers, published.width, published.mlp)


def test_known_models_by_short_name():
    assert known_model("llama-2-7B-HF") == known_model("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert known_model("llama") is None


def test_lora_trains_few_weights():
    size = count(read_config(KNOWN_MODELS["TinyLlama/TinyLlama_v1.1"]), SETTINGS, "lora")
    # of rank 8: seven products of a layer; and the recall's two projections and two prompts
    adapters = 22 * 8 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 5632))
    assert size.trained == adapters + 2 * 2048 * 2048 + 2 * 2048


@pytest.mark.parametrize(
    ("layout", "expected"),
    [  # bytes per parameter: weights, gradients, optimizer
        (Layout(0, "step", 4), (4, 4, 8)),  # float32 weights are their own masters
        (Layout(1, "step", 4), (2, 4, 6)),
        (Layout(2, "step", 4), (2, 4, 6)),
        (Layout(2, "segment", 4), (2, 2, 6)),
        (Layout(3, "step", 4), (3, 4, 6)),  # the rank's shard beside the gathered weights
        (Layout(3, "segment", 4), (1, 2, 6)),
        (Layout(2, "step", 4, offloaded=1.0), (4, 4, 0)),
        (Layout(3, "segment", 4, offloaded=0.5), (1, 1, 3)),
        (Layout(3, "segment", 4, offloaded=1.0, offloads_weights=True), (0, 0, 0)),
    ],
)
def test_states_on_two_gpus(layout, expected):
    found = states(WORK, layout, 2)
    parts = (found["weights"], found["gradients"], found["optimizer"])
    assert parts == tuple(number * SIZE.parameters for number in expected)


def test_segments_are_kept_as_far_as_they_fit():
    small = memory_of(WORK, Layout(2, "step", 16), TWO)
    large = memory_of(WORK, Layout(2, "step", 32), TWO)
    assert small.fits and large.fits and small.kept_segments == 8 > large.kept_segments > 1
    assert large.graph == 2 * small.graph and large.peak + large.graph > large.limit
    one = memory_of(WORK, Layout(2, "step", 32, recompute="segment"), TWO)
    assert one.kept_segments == 1 and one.peak < large.peak
    by_layer = memory_of(WORK, Layout(2, "step", 32, recompute="segment+layer"), TWO)
    assert by_layer.graph < one.graph / 3


def test_passes_of_a_window():
    """A recomputed segment is read three times, a kept one twice; a batch of summaries as well."""
    memory = replace(memory_of(WORK, Layout(2, "step", 4), TWO), kept_segments=3, summary_segments=4, kept_summaries=0)
    passes = window_passes(WORK, Layout(2, "step", 4), memory)
    segments = [p for p in passes if p.part.positions == 4 * 1058]
    assert sum(p.count for p in segments if not p.backward) == 8 + 5
    assert sum(p.count for p in segments if p.backward) == 8 and sum(p.count for p in segments if p.again) == 5
    summaries = [p for p in passes if p.part.positions == 4 * 4 * 514]
    assert [(p.count, p.backward, p.again) for p in summaries] == [
        (2, False, False),
        (2, False, True),
        (2, True, False),
    ]


def test_bytes_between_nodes():
    """ZeRO-2 reduces gradients and gathers weights, 2 bytes each; a node lacks half of them, a GPU three quarters."""
    fleet = Fleet(GPUS["H100"], 4, 2, 50e9)
    layout = Layout(2, "step", 4)
    found = step_time(WORK, layout, fleet, memory_of(WORK, layout, fleet))
    assert found.between == 4 * SIZE.parameters * 0.5 and found.within == 4 * SIZE.parameters * 0.5
    slow = step_time(WORK, layout, replace(fleet, link=1e9), memory_of(WORK, layout, fleet))
    assert slow.parts["messages"] == pytest.approx(found.between / 1e9)
    assert slow.seconds - found.seconds == pytest.approx(slow.parts["messages"] - found.parts["messages"])


def test_the_search_orders_layouts():
    found = best_of_each_family(WORK, TWO)
    fits = [one.memory.fits for one in found]
    assert fits == sorted(fits, reverse=True)
    seconds = [one.time.seconds for one in found if one.memory.fits]
    assert seconds == sorted(seconds) and why_it_loses(found[0], found[0]) == ""
    reasons = [why_it_loses(one, found[0]) for one in found[1:] if one.memory.fits]
    assert all("% slower: " in reason or reason == "as fast" for reason in reasons) and "slower" in reasons[-1]
    for one in found:  # the same rows in a step
        layout = one.layout
        rows = layout.rows * layout.micro_batches * layout.data_ranks(2) * layout.windows(WORK, 2)
        assert rows == WORK.rows
    assert {one.layout.stages for one in best_of_each_family(replace(WORK, can_pipeline=False), TWO)} == {1}


def test_what_does_not_fit_says_why():
    small = fleet_of(2, replace(GPUS["H100"], gib=12), None, 50e9)
    worst = estimate(WORK, Layout(2, "step", 8), small)
    assert why_it_loses(worst, worst).startswith("does not fit: 17 of 10 GiB, optimizer 6")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_plans(file):
    found = plan_recipe(load_recipe(file), file, fleet_of(8, GPUS["H100"], None, 50e9))
    assert found.own.memory.fits and found.hours > 0 and found.others[0].memory.fits


@pytest.mark.parametrize("gpus", ["8xH100", "2xA100-40GB", "1xH100", "16xH100"])
def test_a_fitted_recipe_is_valid_and_has_the_layout(monkeypatch, capsys, tmp_path, gpus):
    source, fitted = PROJECT / "launch" / "recipes" / "bench-1.1b.yaml", tmp_path / "new" / "fitted.yaml"
    words = (str(source), "--gpus", gpus, "--fit", str(fitted), "--training.batch_size", "8")
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, err) == (0, "") and f"next         hmt-ds train {fitted} --dry-run" in out
    recipe = load_recipe(fitted)
    fleet = fleet_of(*read_gpus(gpus), None, 50e9)
    best = plan_recipe(load_recipe(source, ["--training.batch_size", "8"]), source, fleet).others[0]
    work = work_of(recipe, fleet)
    assert own_layout(recipe, fitted, work, fleet) == best.layout and work.rows == best.work.rows
    config = read_config(recipe.model.source)
    checks = (config, deepspeed_config(recipe, fitted))
    assert not check_pipeline(recipe, *checks) and not check_compute(recipe, *checks)
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2 and f"--fit: {fitted} exists: name a new file" in err


def test_what_the_command_prints(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "llama-2-7b-hf", "--gpus", "4xH100", "--training.batch_size", "1")
    assert (code, err) == (0, "")
    assert "model        6.7" in out and "the fastest that fits" in out and "% slower: " in out
    assert "warning      the recipe as it is: tight: 74 of 78 GiB, gradients 25" in out
    assert out.rstrip().splitlines()[-1] == "next         hmt-ds plan llama-2-7b-hf --gpus 4xH100 --fit FILE"
    code, out, _ = run(monkeypatch, capsys, "llama-3.1-405B", "--gpus", "1xA10")
    assert code == 0 and "warning      the recipe as it is: does not fit: " in out
    code, _, err = run(monkeypatch, capsys, "llama-3.1-405B", "--gpus", "1xA10", "--fit", "x.yaml")
    assert code == 2 and "--fit: no layout fits 1 x A10 24 GB on 1 node" in err


def test_warnings():
    recipe = load_recipe(PROJECT / "launch" / "recipes" / "bench-1.1b.yaml")
    far = Fleet(GPUS["H100"], 16, 16, 0.1e9)
    plain = estimate(WORK, Layout(2, "step", 1), far)
    assert any(line.startswith("bound by communication: messages take ") for line in warnings_of(recipe, plain, 8))
    four = fleet_of(4, GPUS["H100"], None, 50e9)
    ring = estimate(replace(WORK, size=replace(SIZE, layers=12)), Layout(1, "step", 16, 4, 1), four)
    assert any(line.startswith("too few micro-batches: ") for line in warnings_of(recipe, ring, 8))
    one = estimate(WORK, Layout(2, "step", 8, recompute="segment"), TWO)
    assert warnings_of(recipe, one, 4)[-1].startswith("depth cut short: training.steps 100 ends at depth 4")
    assert not any("depth" in line for line in warnings_of(recipe, one, 8))
    streamed = estimate(WORK, Layout(3, "segment", 1, recompute="segment"), TWO)
    assert any("DeepSpeed's hooks take" in line for line in warnings_of(recipe, streamed, 8))


def test_gpus_and_links_as_users_write_them():
    assert read_gpus("16xH100-80GB") == (16, GPUS["H100"]) and read_gpus("h200") == (1, GPUS["H200"])
    assert read_gpus("8 x A100-40GB")[1].gib == 40
    assert read_link("50GB/s") == read_link("400Gb/s") == read_link("400Gbps") == 50e9
    assert str(fleet_of(16, GPUS["H100"], None, 50e9)) == "16 x H100 80 GB on 2 nodes, 50 GB/s into a node"
    with pytest.raises(ValueError, match="12 GPUs cannot be spread evenly over 5 nodes"):
        fleet_of(12, GPUS["H100"], 5, 1e9)


def test_published_figures_of_another_trainer(monkeypatch):
    """What PLAN.md states of FSDP on up to 64 GPUs: all within 18%."""
    monkeypatch.syspath_prepend(str(PROJECT / "tests" / "benchmarks"))
    import plan_scale

    found = [plan_scale.same_work(row)[0].tokens_per_second / row.tokens_per_second for row in plan_scale.PUBLISHED]
    assert len(found) == 8 and max(abs(ratio - 1) for ratio in found) < 0.185


def test_error_on_held_out_measurements(monkeypatch):
    """What PLAN.md states: of 18 configurations 15 within 15% in speed, 14 within 10% in memory."""
    monkeypatch.syspath_prepend(str(PROJECT / "tests" / "benchmarks"))
    import plan_table

    errors = [plan_table.errors(case) for case in plan_table.HELD_OUT]
    assert len(plan_table.FITTED) == 6 and len(errors) == 18
    assert sum(abs(speed) <= 0.15 for speed, _ in errors) == 15
    assert sum(abs(memory) <= 0.10 for _, memory in errors) == 14
    assert plan_table.table() in (PROJECT / "tests" / "benchmarks" / "PLAN.md").read_text()
