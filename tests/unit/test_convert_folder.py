"""Files of a converted folder besides weights: the tokenizer's, and the figures of the card."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from tiny import LLAMA, make_settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hmt_ds.backbones import read_config
from hmt_ds.conversion.card import card, figures
from hmt_ds.conversion.export import Export
from hmt_ds.conversion.folder import write_folder
from hmt_ds.conversion.weights import tensor_weights
from hmt_ds.evaluation.losses import DocumentLosses
from hmt_ds.training import validation
from hmt_ds.training.validation import Validation

TEMPLATES = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


def test_a_tokenizer_with_several_chat_templates(tmp_path):
    """Several chat templates are written as a folder inside the folder."""
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = TEMPLATES
    config = read_config(LLAMA)
    weights = tensor_weights(
        {f"backbone.model.{n}": w for n, w in AutoModelForCausalLM.from_config(config).state_dict().items()}
    )
    export = Export("backbone", weights, config, make_settings(mode="backbone"), torch.float32, tokenizer=tokenizer)
    write_folder(export, tmp_path / "hf")
    assert any(path.is_dir() for path in (tmp_path / "hf").iterdir())
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template == TEMPLATES
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def evaluation_of(step: int, source: str = "/texts/held_out.txt") -> dict[str, Any]:
    """An evaluation whose losses tell its step."""
    figures = {"perplexity": 5.0, "nats": [step + 0.5, step, step + 1], "cost_swapped": [0.12, 0.11, 0.13]}
    row = {"segments_read": 2, "below": 4, "tokens": 1200, **figures, "cost_none": [None, None, None]}
    data = {"source": source, "sha256": "cd" * 32, "documents": 8, "tokens": 4321}
    return {"step": step, "data": data, "verdict": "the memory is used", "rows": [row]}


@pytest.fixture
def run(tmp_path) -> Path:
    """Make a run of 30 steps whose losses are the step numbers, evaluated after steps 10, 20 and 30."""
    rows = [{"step": step, "loss": None if step == 4 else float(step)} for step in range(1, 31)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text("training: {steps: 30}\n")
    (tmp_path / "evaluation").mkdir()
    for step in (10, 20, 30):
        (tmp_path / f"evaluation/step_{step:06d}.json").write_text(json.dumps(evaluation_of(step)))
    # of other data, and of a version that did not say what it had read
    (tmp_path / "evaluation/step_000020_abababab.json").write_text(json.dumps(evaluation_of(20, source="other.txt")))
    (tmp_path / "evaluation/step_000025.json").write_text(json.dumps({"step": 25, "rows": [{"memory_on": 1.0}]}))
    (tmp_path / "evaluation/step_000015.part").write_text("{")
    return tmp_path


@pytest.mark.parametrize(
    ("step", "losses", "evaluation"),
    [
        (2, "2 steps; loss 1.000 at first, 1.500 over the last 2 that", None),
        (12, "12 steps; loss 1.000 at first, 7.300 over the last 10 that", 10),  # 2, 3, and 5 to 12
        (20, "20 steps; loss 1.000 at first, 15.500 over the last 10 that", 20),
        (30, "30 steps; loss 1.000 at first, 25.500 over the last 10 that", 30),
    ],
)
def test_a_card_tells_its_own_checkpoints_figures(run, step, losses, evaluation):
    found = figures(run, step)
    assert losses in found[0] and len(found) == (1 if evaluation is None else 2)
    if evaluation is not None:
        assert f"loss after step {evaluation} on held_out.txt (8 documents, 4,321 tokens" in found[1]
        numbers = f"{evaluation}.500 [{evaluation}.000, {evaluation + 1}.000] | 0.120 [0.110, 0.130] | - |"
        assert f"| 2 to 3 | 1,200 | 5.000 | {numbers}\n\nSo the memory is used." in found[1]
    assert losses in card("model", f"run/step_{step:06d}", make_settings(), run=run, step=step)


def test_a_disk_that_is_full_leaves_the_evaluation_before(tmp_path, monkeypatch, caplog):
    """The file is written under another name first: under its own name it is always complete."""
    ones = np.ones((2, 2, 1))
    found = DocumentLosses(8, {"own": 5 * ones}, {"own": ones})
    monkeypatch.setattr(validation, "document_losses", lambda *_: found)
    held_out = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]], "length": [2, 1]})
    recipe: Any = SimpleNamespace(
        training=SimpleNamespace(output=str(tmp_path), batch_size=2),
        evaluation=SimpleNamespace(segments_read=[1], batch_size=None),
        memory=make_settings(mode="backbone"),
        data=SimpleNamespace(sources=lambda _: {"data.validation": SimpleNamespace(source="text.txt")}),
    )
    prepared: Any = SimpleNamespace(validation=held_out, tokenizer="words")
    one = Validation(recipe, prepared, cast(Any, None), lambda: None)
    one.evaluate(3)
    file = tmp_path / "evaluation/step_000003.json"
    before = file.read_bytes()
    assert json.loads(before)["rows"][0]["nats"] == [5.0, 5.0, 5.0]
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".json", ".npz", ".png"]
    right = Path.write_text

    def full(path: Path, text: str, *more: Any, **options: Any) -> int:
        right(path, text[: len(text) // 2], *more, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    for step in (3, 4):
        one.evaluate(step)
    assert file.read_bytes() == before and list(file.parent.glob("*.json")) == [file]
    assert caplog.text.count("cannot be written: No space left on device") == 2
