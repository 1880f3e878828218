"""The depth of truncated BPTT by step: stages, random depths, how recipes write them, errors."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from datasets import Dataset

from hmt_ds.checkpoint import RunPosition
from hmt_ds.config.config_error import ConfigError
from hmt_ds.config.depth_schedule import DepthSchedule
from hmt_ds.config.load import PROJECT, load_recipe, read_mapping
from hmt_ds.config.recipe_yaml import write_yaml
from hmt_ds.preflight.prepare import Prepared
from hmt_ds.preflight.recipe_checks import check_curriculum, check_training
from hmt_ds.training.build import training_loader

NOVEL = PROJECT / "launch/recipes/novel.yaml"


def depths_of(*words: str) -> DepthSchedule:
    return load_recipe(NOVEL, list(words)).depths


def test_a_stage_holds_from_its_number_of_steps_on():
    schedule = depths_of("--training.bptt_depth", "{0: 2, 200: 4, 400: 8}")
    assert [schedule.of_step(step) for step in (1, 200, 201, 400, 401, 9999)] == [2, 2, 4, 4, 8, 8]
    assert schedule.largest == 8
    assert [depths_of("--training.bptt_depth", "5").of_step(step) for step in (1, 1000)] == [5, 5]


def test_the_largest_depth_need_not_be_the_last():
    assert depths_of("--training.bptt_depth", "{0: 6, 10: 3}").largest == 6


def test_random_depths_are_uniform_up_to_the_stage_and_a_function_of_seed_and_step():
    words = ("--training.bptt_depth", "{0: 2, 100: 4}", "--training.random_depth", "true")
    one, again, other = depths_of(*words), depths_of(*words), depths_of(*words, "--training.seed", "12")
    drawn = [one.of_step(step) for step in range(1, 4101)]
    assert drawn == [again.of_step(step) for step in range(1, 4101)]
    assert drawn != [other.of_step(step) for step in range(1, 4101)]
    assert set(drawn[:100]) == {1, 2}
    counts = Counter(drawn[100:])
    assert set(counts) == {1, 2, 3, 4} and all(abs(count - 1000) < 100 for count in counts.values()), counts


@pytest.mark.parametrize(
    "text", ["{0: 2, 200: 4}", "{'0': 2, '200': 4}", '{"0": 2, "200": 4}', "{200: 4, 0: 2}", "[0, 2]"]
)
def test_keys_are_numbers_or_digits_in_yaml_and_on_the_command_line(tmp_path, text):
    values = read_mapping(NOVEL)
    file = tmp_path / "recipe.yaml"
    values["training"] |= {"bptt_depth": "PLACE"}
    file.write_text(write_yaml(values).replace("PLACE", text))
    for recipe, words in ((file, []), (NOVEL, ["--training.bptt_depth", text])):
        if text.startswith(("{200", "[")):
            with pytest.raises(ConfigError, match=r"training\.bptt_depth: "):
                load_recipe(recipe, words)
            continue
        assert load_recipe(recipe, words).training.bptt_depth == {0: 2, 200: 4}


def test_one_stage_can_be_overridden(tmp_path):
    recipe = load_recipe(NOVEL, ["--training.bptt_depth", "{0: 2, 200: 4}"])
    file = tmp_path / "recipe.yaml"
    file.write_text(write_yaml(recipe.model_dump(mode="json")))
    assert load_recipe(file) == recipe
    assert load_recipe(file, ["--training.bptt_depth.200", "8"]).training.bptt_depth == {0: 2, 200: 8}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{5: 2}", "a schedule must begin at step 0, got {5: 2}: write it like {0: 2, 200: 4}"),
        ("{}", "a schedule must begin at step 0, got {}: write it like {0: 2, 200: 4}"),
        ("{0: 2, 9: 4, 3: 8}", "the steps of a schedule must ascend, got {0: 2, 9: 4, 3: 8}: put them in order"),
        ("{0: 2, 9: 0}", "every depth of a schedule must be a whole number of at least 1, got 0 in {0: 2, 9: 0}"),
        ("{0: x}", "every depth of a schedule must be a whole number of at least 1, got 'x' in {0: 'x'}"),
        ("{0: true}", "must be a number, got {0: True}"),
        ("{0: 2, x: 4}", "the keys of a schedule must be numbers of steps, such as {0: 2, 200: 4}, got {0: 2, 'x': 4}"),
        (
            "{0: 2, 1.5: 4}",
            "the keys of a schedule must be numbers of steps, such as {0: 2, 200: 4}, got {0: 2, 1.5: 4}",
        ),
        ("0", "must be at least 1 or a mapping of keys to values, got 0"),
    ],
)
def test_bad_schedules_are_one_line(text, said):
    with pytest.raises(ConfigError) as error:
        load_recipe(NOVEL, ["--training.bptt_depth", text])
    assert error.value.problems == [f"training.bptt_depth: {said}"]


def test_generated_documents_have_at_least_two_segments(tmp_path):
    """In one of a single segment nothing is asked."""
    values = read_mapping(NOVEL)
    values["training"] |= {"bptt_depth": {0: 2, 50: 3}, "random_depth": True}
    values["data"] = {"retrieval": {}}
    file = tmp_path / "recipe.yaml"
    file.write_text(write_yaml(values))
    depths = load_recipe(file).depths
    assert {depths.of_step(step) for step in range(1, 51)} == {2}
    assert {depths.of_step(step) for step in range(51, 151)} == {2, 3}


def test_a_stage_beyond_the_run_is_refused():
    words = ["--training.bptt_depth", "{0: 2, 20: 4}", "--training.steps"]
    assert check_training(load_recipe(NOVEL, [*words, "21"])) == []
    (problem,) = check_training(load_recipe(NOVEL, [*words, "20"]))
    assert "step 20 of the schedule is never reached, training.steps is 20" in problem


def test_a_curriculum_longer_than_the_documents_is_refused():
    words = ["--memory.segment_length", "10", "--training.bptt_depth"]
    assert check_curriculum(load_recipe(NOVEL, [*words, "{0: 2, 9: 4}"]), np.array([5, 31, 12])) == []
    assert check_curriculum(load_recipe(NOVEL, [*words, "9"]), np.array([5])) == []
    (problem,) = check_curriculum(load_recipe(NOVEL, [*words, "{0: 2, 9: 4}"]), np.array([5, 30, 12]))
    assert "the longest of data.train has 3 segments of 10 tokens, the schedule asks for 4" in problem


def test_the_loader_gives_each_step_its_depth_and_resumes_exactly():
    """Two windows a step, of one depth; every position continues as the uninterrupted run, also across a stage."""
    words = ["--training.bptt_depth", "{0: 1, 2: 3, 5: 4}", "--training.gradient_accumulation", "2"]
    recipe = load_recipe(NOVEL, [*words, "--memory.segment_length", "8", "--training.batch_size", "3"])
    lengths = [56, 3, 16, 33, 1, 24, 8, 50]
    random = np.random.default_rng(0)
    tokens = Dataset.from_dict({"input_ids": [random.integers(1, 99, n) for n in lengths], "length": lengths})
    prepared = Prepared({}, tokens, None)
    whole = list(islice(training_loader(recipe, prepared), 16))
    assert [batch.input_ids.shape[1] for batch in whole] == [1] * 4 + [3] * 6 + [4] * 6
    for step in range(1, 7):
        after = RunPosition(step, 0, whole[2 * step - 1].position)
        rest = list(islice(training_loader(recipe, prepared, after), 16 - 2 * step))
        for one, other in zip(rest, whole[2 * step :], strict=True):
            assert one.position == other.position and one.input_ids.equal(other.input_ids)
