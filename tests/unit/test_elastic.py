"""The number of machines that can share the rows of a run, and the batch size of its ranks."""

from pathlib import Path

import pytest

from hmt_ds.checkpoint.files import RUN_STATE, write_json, write_manifest
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.recipe import Recipe
from hmt_ds.training import elastic


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Of a run on 8 ranks with 3 rows each, whose newest checkpoint is damaged."""
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step_{step:06d}"
        folder.mkdir(parents=True)
        state = {"rows_per_rank": 3, "world_size": 8, "stages": 1}
        write_manifest(folder, {RUN_STATE: write_json(folder / RUN_STATE, state)})
    (folder / RUN_STATE).write_text("{")
    return make_recipe(tmp_path)


def make_recipe(output: Path, stages: int = 1, resume: str = "auto") -> Recipe:
    """A recipe with batch_size 1, which no checkpoint has."""
    return Recipe.model_validate(
        {
            "model": {"source": "./model"},
            "memory": {"segment_length": 16},
            "data": {"train": {"source": "text.txt"}},
            "training": {"output": str(output), "steps": 3, "elastic": True},
            "pipeline": {"stages": stages},
            "checkpoint": {"resume": resume},
            "optimizer": {"lr": 0.1},
            "deepspeed": "ds_configs/zero2.json",
        }
    )


@pytest.mark.parametrize(("nodes", "ranks", "found"), [(4, 2, 4), (5, 2, 4), (7, 1, 6), (3, 8, 3), (2, 16, 0)])
def test_machines(recipe, nodes, ranks, found):
    if found:
        assert elastic.usable_nodes(recipe, nodes, ranks) == found
    else:
        with pytest.raises(ConfigError, match="24 rows cannot be shared equally by 2 machines of 16 ranks, or fewer"):
            elastic.usable_nodes(recipe, nodes, ranks)


def test_pipelines_share_rows(recipe, tmp_path):
    assert elastic.usable_nodes(make_recipe(tmp_path, stages=4), 5, 8) == 4  # 10 pipelines cannot, 8 can
    assert elastic.usable_nodes(make_recipe(tmp_path, stages=3), 4, 8) == 3  # 32 ranks are no pipelines of 3


def test_a_new_run_takes_all(recipe, tmp_path):
    assert elastic.usable_nodes(make_recipe(tmp_path / "new"), 5, 7) == 5
    assert elastic.usable_nodes(make_recipe(tmp_path, resume="never"), 5, 7) == 5


@pytest.mark.parametrize(("ranks", "size"), [(8, 3), (4, 6), (24, 1), (5, None)])
def test_batch_size(recipe, monkeypatch, ranks, size):
    monkeypatch.setattr(elastic, "world_size", lambda: ranks)
    if size:
        assert elastic.keep_global_batch(recipe).training.batch_size == size
    else:
        with pytest.raises(ConfigError, match="24 rows cannot be shared equally by 5 ranks"):
            elastic.keep_global_batch(recipe)
    rigid = recipe.model_copy(update={"training": recipe.training.model_copy(update={"elastic": False})})
    assert elastic.keep_global_batch(rigid).training.batch_size == 1
