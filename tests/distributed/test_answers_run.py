"""Runs whose loss is on answers alone, or weighted, from files to the evaluation, on ZeRO and on a pipeline."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_recipe import make_materials, train, write_recipe

from hmt_ds.data import load_tokenizer
from hmt_ds.reporting.metrics import read_metrics

TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Questions on pages of a novel, conversations, and their chat template."""
    folder = tmp_path_factory.mktemp("answers")
    make_materials(folder)
    text = (folder / "text.txt").read_text()
    pages = [text[at : at + 40 + 12 * n] for n, at in enumerate(range(0, 3000, 300))]
    questions = [{"context": page, "input": "Who?", "answers": ["Mr. Bennet", "He"]} for page in pages]
    chats = [[("user", page), ("assistant", "Yes."), ("user", "Who?"), ("assistant", page[:20])] for page in pages]
    messages = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    for name, rows in (("questions", questions), ("messages", messages)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chat.jinja").write_text(TEMPLATE)
    return folder


@pytest.mark.parametrize(("stage", "stages"), [(3, 1), (1, 2)])
def test_answers_from_files_to_the_evaluation(folder, tmp_path, stage, stages):
    """Steps without labels have no loss and do no harm; held-out losses are those of the answers' tokens alone."""
    chats = {"source": str(folder / "messages.jsonl"), "format": "messages", "prompt_weight": 0.5}
    chats |= {"chat_template": str(folder / "chat.jinja")}
    asked = {"source": str(folder / "questions.jsonl"), "format": "questions"}
    words = ["--data.train", json.dumps([asked, chats] if stages == 1 else asked), "--training.steps", "6"]
    words += ["--data.validation", json.dumps(asked), "--evaluation.segments_read", "[0, 1, 2, 4, 8, 16, 32]"]
    words += ["--training.bptt_depth", "1", "--training.batch_size", "2", "--pipeline.stages", str(stages)]
    run = tmp_path / "run"
    code, printed = train(write_recipe(folder, stage), run, *words)
    assert code == 0, printed
    rows = read_metrics(run / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    assert (
        len(rows) == 6 and losses and all(3 < loss < 8 for loss in losses) and not any(row["skipped"] for row in rows)
    )
    assert stages == 1 or len(losses) < 6  # a segment of pages alone has no label
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    answer = tokenizer(" Mr. Bennet", add_special_tokens=False).input_ids
    found = np.load(run / "evaluation" / "step_000006.npz")
    assert found["tokens"][0].sum() == 10 * (len(answer) + 1)  # and EOS
    assert math.isfinite(found["losses"].sum())
