"""Recipes that a pipeline cannot run are refused before anything starts."""

from dataclasses import replace
from typing import Any

import pytest

from hmt_ds.backbones import read_config
from hmt_ds.config.recipe import Recipe
from hmt_ds.memory import MemorySettings
from hmt_ds.planning.activations import kept_bytes
from hmt_ds.preflight import compute_checks
from hmt_ds.preflight.compute_checks import check_recompute
from hmt_ds.preflight.pipeline_checks import check_pipeline
from hmt_ds.training.build import describe_bubble

LLAMA = {"model_type": "llama", "num_hidden_layers": 4}
ZERO_1 = {"zero_optimization": {"stage": 1}}
OFFLOADED = {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}


def recipe_of(
    model: dict[str, Any] | None = None, batch_size: int = 4, compute: dict[str, Any] | None = None, **pipeline: Any
) -> Recipe:
    """Return a recipe with a pipeline."""
    return Recipe.model_validate(
        {
            "model": {"source": LLAMA} | (model or {}),
            "memory": {"segment_length": 8},
            "data": {"train": {"source": "a.txt"}},
            "training": {"output": "run", "steps": 1, "batch_size": batch_size},
            "optimizer": {"lr": 0.1},
            "deepspeed": "zero1.json",
            "compute": compute or {},
            "pipeline": {"stages": 2} | pipeline,
        }
    )


def problems(recipe: Recipe, ds_config: dict[str, Any] | None = None) -> list[str]:
    return check_pipeline(recipe, read_config(dict(recipe.model.source)), ZERO_1 if ds_config is None else ds_config)


def test_two_stages_have_no_problems():
    assert problems(recipe_of()) == []
    assert problems(recipe_of(layers=[1, 3], micro_batches=2)) == problems(recipe_of(layers="time")) == []


def test_without_a_pipeline_nothing_is_checked():
    assert (
        problems(recipe_of({"train": "frozen"}, stages=1, micro_batches=3), {"zero_optimization": {"stage": 3}}) == []
    )


@pytest.mark.parametrize(
    ("recipe", "ds_config", "said"),
    [
        (recipe_of(), {"zero_optimization": {"stage": 3}}, "pipeline.stages is 2, with ZeRO-3"),
        (recipe_of(), {}, "pipeline.stages is 2, with ZeRO-0"),
        (recipe_of(stages=5), None, "pipeline.stages is 5, the backbone has 4 layers"),
        (recipe_of(layers=[1, 1]), None, "[1, 1], 2 layers in 2 stages: the backbone has 4, and pipeline.stages is 2"),
        (recipe_of(layers=[1, 1, 2]), None, "4 layers in 3 stages"),
        (recipe_of(micro_batches=3), None, "pipeline.micro_batches is 3: training.batch_size, 4, is not a multiple"),
        (recipe_of({"train": "frozen"}), None, "frozen"),
        (recipe_of({"precision": "fp16"}), None, "fp16: take bf16"),
        (recipe_of({"source": {"model_type": "stablelm"}}), None, "stablelm cannot be cut into stages"),
        (recipe_of(), OFFLOADED, "pipeline.stages: not with an offloaded optimizer: take ds_configs/zero1.json"),
        (recipe_of(compute={"reduction": "segment"}), None, "compute.reduction is segment"),
        (
            recipe_of(compute={"summary_batch": 2}),
            None,
            "compute.summary_batch is 2: stages compute one summary",
        ),
        (recipe_of(compute={"spill": True}), None, "compute.spill is true, but with stages pipeline.live_inputs says"),
    ],
)
def test_each_problem_is_one_line(recipe, ds_config, said):
    (line,) = problems(recipe, ds_config)
    assert said in line


@pytest.mark.parametrize(("rows", "stages", "parts"), [(4, 2, 2), (4, 3, 4), (9, 2, 3), (2, 4, 2), (1, 2, 1)])
def test_default_is_the_fewest_micro_batches_that_keep_stages_busy(rows, stages, parts):
    assert recipe_of(batch_size=rows, stages=stages).micro_batches == parts


@pytest.mark.parametrize(
    ("recompute", "share", "said"),
    [
        ("auto", 2 / 4 / 2, "for one segment of 2 rows: take segment+layer, or lower training.batch_size, or raise"),
        ("segment+layer", 2 / 4 / 2, "for one segment of 2 rows: lower training.batch_size, or raise pipeline.micro"),
        ("none", 1 / 2, "3 segments of"),
    ],
)
def test_a_stage_holds_its_layers_of_one_micro_batch(monkeypatch, recompute, share, said):
    """4 rows in two micro-batches on two stages; or all rows and segments, where nothing is recomputed."""
    plain = recipe_of()
    compute = replace(plain.compute, recompute=recompute)
    training = plain.training.model_copy(update={"bptt_depth": 3})
    recipe = plain.model_copy(update={"compute": compute, "training": training})
    config, settings = read_config(LLAMA), MemorySettings(8, recall_dim=1)
    whole = kept_bytes(config, settings, recompute, batch=4, depth=3, size=2)
    for available, problems in ((whole * share, 0), (whole * share - 1, 1)):
        monkeypatch.setattr(
            compute_checks, "memory_of_this_machine", lambda available=available: (available, "the GPU")
        )
        found = check_recompute(recipe, config)
        assert len(found) == problems and all(said in line for line in found)


def test_too_few_micro_batches_are_reported_with_the_bubble():
    """One micro-batch without summaries on two stages: each idles while the other works."""
    recipe = recipe_of(batch_size=1)
    alone = recipe.model_copy(update={"memory": replace(recipe.memory, mode="rmt")})
    assert "with 1 micro-batches on 2 stages a stage waits 50% of its time" in describe_bubble(alone, 1)
