"""Values that transformers, torch or DeepSpeed accept and no run can have: one line before anything starts."""

from pathlib import Path

import pytest
import yaml

from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.load import load_recipe
from hmt_ds.preflight.prepare import prepare

QUICKSTART = Path(__file__).parents[2] / "launch/recipes/quickstart.yaml"
BACKBONE = yaml.safe_load(QUICKSTART.read_text())["model"]["source"]


def lines(tmp_path: Path, *changes: str) -> list[str]:
    """Problems of the quickstart's recipe with some changes, or else its warnings."""
    recipe = load_recipe(QUICKSTART, ["--training.output", str(tmp_path / "run"), *changes])
    try:
        return list(prepare(recipe, QUICKSTART, with_data=False).warnings)
    except ConfigError as error:
        return str(error).splitlines()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"vocab_size": 10**12}, "model: embeddings of 1,000,000,000,000 tokens take 476,837.2 GiB, "),
        ({"dtype": 7}, "model.source.dtype is 7: must be a type of torch, such as bfloat16"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0}},
            "model.source.rope_parameters.factor is 0: must be a number above 0",
        ),
    ],
)
def test_of_a_configuration(tmp_path, change, line):
    found = lines(tmp_path, "--model.source", yaml.safe_dump(BACKBONE | change, default_flow_style=True))
    assert len(found) == 1 and found[0].startswith(line), found


def test_of_an_optimizer(tmp_path):
    """Whatever is not empty counts as true in torch, also no."""
    found = lines(tmp_path, "--optimizer.params", "{fused: x, amsgrad: 'no'}")
    assert found == [
        f"optimizer.params.{key} is {given!r}: must be true or false"
        for key, given in (("amsgrad", "no"), ("fused", "x"))
    ]


def test_a_warm_up_longer_than_the_run_is_said(tmp_path):
    """A short trial of a recipe may have one, so it is no error."""
    assert lines(tmp_path, "--schedule.params.warmup_num_steps", "300") == []
    (line,) = lines(tmp_path, "--schedule.params.warmup_num_steps", "301")
    assert line.startswith("schedule.params.warmup_num_steps is 301, and training.steps 300: the learning rate never")
