"""Tasks in a run: the tokens of their documents, which answers count as right, and where the figures are logged."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from test_generate_command import write_tokenizer
from tiny import L, document, empty_state, make_model, make_window
from transformers import PreTrainedTokenizerBase

from hmt_ds.config.load import load_recipe
from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.data import DataError, document_lengths, load_tokenizer
from hmt_ds.data.haystack import Haystack
from hmt_ds.data.task_documents import encode_tasks
from hmt_ds.evaluation.answers import counting_misses, misses, right_answers
from hmt_ds.evaluation.losses import DocumentLosses
from hmt_ds.evaluation.read_documents import document_losses
from hmt_ds.memory import IGNORED, read_window
from hmt_ds.memory.loss import cross_entropy
from hmt_ds.preflight.recipe_checks import check_tasks
from hmt_ds.reporting.metrics import Metrics, read_metrics
from hmt_ds.reporting.monitors import prefixed

RECIPE = Path(__file__).parents[2] / "launch/recipes/babilong-smollm2.yaml"
ANSWER = 4  # tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with BOS."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(str(folder))


def test_the_documents_are_those_of_the_command(tokenizer):
    """Text, question and answer of `hmt-ds evaluate --tasks` with seed 0; the answer alone has weight 1."""
    found = encode_tasks(["babilong-qa1", "passkey", "passkey"], [80, 200], 3, tokenizer)
    haystack = Haystack(tokenizer, "test")
    assert [(one.task, one.length) for one in found] == [
        (name, n) for name in ("babilong-qa1", "passkey") for n in (80, 200)
    ]
    for one in found:
        for number, row in enumerate(one.tokens.with_format("numpy")):
            task = haystack.task(one.task, one.length, number)
            answer = f" {task.story.answer}"
            assert tokenizer.decode(row["input_ids"]) == f"<s>{task.text}{task.question}{answer}"
            assert tokenizer.decode(row["input_ids"][row["weights"] == 1]) == answer
            assert set(row["weights"]) == {0, 1} and row["length"] == len(row["input_ids"])
            assert one.places[number] == task.place
        assert one.length == 80 or 100 < min(document_lengths(one.tokens)) < max(document_lengths(one.tokens)) < 260
    again = encode_tasks(["babilong-qa1", "passkey"], [80, 200], 3, tokenizer)
    assert [one.tokens[:] for one in again] == [one.tokens[:] for one in found]


def test_slow_tokenizers_are_refused(tokenizer):
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(DataError, match="needs a fast tokenizer"):
        encode_tasks(["passkey"], [80], 2, slow)


def test_misses():
    """A token is wrong if another one has a larger logit; what is no label never is."""
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 0.0, 1.0]])
    assert misses(logits, torch.tensor([1, 1, IGNORED])).tolist() == [0, 1, 0]
    assert misses(logits.bfloat16(), torch.tensor([2, 0, 2])).tolist() == [1, 0, 0]


@pytest.mark.parametrize("mode", ["rmt", "hmt"])
def test_right_answers_are_what_greedy_decoding_writes(mode):
    """Over boundaries too; one changed token makes an answer wrong, and other memories are other readings."""
    model = make_model(mode=mode, interface="adapted")
    causal = HMTForCausalLM.around(model)
    causal.generation_config.eos_token_id = None
    rows, changed = [], []
    for number, length in enumerate((9, 2 * L - 2, 2 * L, 3 * L - 1, 14, 20)):
        torch.manual_seed(number)
        ids = causal.generate(document(length)[None], max_new_tokens=ANSWER)[0]
        if number % 2:
            at = length + (number // 2) % ANSWER
            ids[at] = (ids[at] + 1) % model.backbone.vocabulary
        rows.append(ids)
        changed.append(bool(number % 2))
    window = make_window([[row] for row in rows])
    for row, ids in enumerate(rows):  # labels are shifted
        labels = window.labels[row].flatten()
        labels[: len(ids) - ANSWER - 1] = IGNORED
        window.labels[row] = labels.view(-1, L)

    def read(window: Any, state: Any, **options: Any) -> Any:
        with torch.no_grad():
            yield from read_window(model, model.settings, window, state or empty_state(model, len(rows)), **options)

    reader: Any = SimpleNamespace(
        engine=SimpleNamespace(module=model), settings=model.settings, read=read, reports=True, device="cpu"
    )
    numbers = torch.arange(len(rows))[:, None].expand(-1, len(window))
    with counting_misses(reader):
        found = document_losses(reader, [(window, numbers)], len(rows), len(window), ["swapped", "none"])
    right = right_answers(found)
    assert right["own"] == [float(not one) for one in changed]
    assert set(right) == {"own", "swapped", "none"} and min(right["none"]) == 0
    assert found.tokens["own"].sum() == ANSWER * len(rows)
    assert model.cross_entropy is cross_entropy


def test_documents_that_were_not_read_another_way_are_left_out():
    wrong = np.array([0.0, 2.0, 0.0]).reshape(3, 1, 1)
    asked = np.array([1.0, 2.0, 0.0]).reshape(3, 1, 1)
    assert right_answers(DocumentLosses(L, {"swapped": wrong}, {"swapped": asked})) == {"swapped": [1.0, 0.0]}


def test_the_loss_comes_back_after_an_error():
    model = make_model()
    reader: Any = SimpleNamespace(engine=SimpleNamespace(module=model))
    with pytest.raises(RuntimeError), counting_misses(reader):
        assert model.cross_entropy is misses
        raise RuntimeError
    assert model.cross_entropy is cross_entropy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], []),
        (["--evaluation.tasks", "[passkey, babilong-qa5]"], []),
        (
            ["--evaluation.tasks_every", "3", "--evaluation.tasks_lengths", "[9]"],
            ["evaluation.tasks_every: only with evaluation.tasks", "evaluation.tasks_lengths: only with"],
        ),
        (
            ["--evaluation.tasks", "[passkey]", "--memory.interface", "paper", "--memory.mode", "hmt"],
            ["evaluation.tasks: memory.interface paper in mode hmt"],
        ),
        (["--evaluation.tasks", "[passkey]", "--memory.interface", "paper"], []),
    ],
)
def test_what_cannot_be_asked_is_refused(words, said):
    problems = check_tasks(load_recipe(RECIPE, ["--evaluation.tasks", "[]", *words]))
    assert len(problems) == len(said)
    assert all(problem.startswith(line) for problem, line in zip(problems, said, strict=True))


def test_default_length():
    """The documents of a training window."""
    assert load_recipe(RECIPE, []).tasks_lengths == [17 * 256]
    assert load_recipe(RECIPE, ["--evaluation.tasks_lengths", "[900, 80, 900]"]).tasks_lengths == [80, 900]


def test_figures_are_rows_of_their_own(tmp_path):
    """In metrics.jsonl and in trackers, not in the CSV file or among the steps; a resume drops those of later steps."""
    metrics, seen = Metrics(tmp_path, csv=True), list[dict[str, float]]()
    metrics.sinks["tracker"] = cast(Any, SimpleNamespace(write=lambda row: seen.append(prefixed(row))))
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss": 1 / step})
        metrics.write_evaluation({"step": step, "evaluation/passkey/80": step / 4})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert seen[-2:] == [{"train/loss": 1 / 3}, {"evaluation/passkey/80": 0.75}]
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,1.0\n2,0.5\n3,0.3333333333333333\n"
    Metrics(tmp_path, 2)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 2, "evaluation/passkey/80": 0.5}
