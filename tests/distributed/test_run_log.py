"""The log and metrics of a run: rates, steps without labels, one entry per evaluation."""

import json

from tiny_recipe import make_materials, train, write_recipe

from hmt_ds.reporting.metrics import read_metrics


def test_steps_without_labels_and_the_last_evaluation(tmp_path):
    """A document's last token has no label, so a step on it alone has no loss: 0 would lower the mean at the end."""
    make_materials(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n' * 20)
    source = str(tmp_path / "text.jsonl")
    words = ("--data.train", json.dumps({"source": source}), "--data.validation", json.dumps({"source": source}))
    words += ("--training.steps", "4", "--training.bptt_depth", "1", "--training.batch_size", "1")
    words += ("--memory.segment_length", "1", "--memory.sensory_tokens", "0")
    code, printed = train(write_recipe(tmp_path, 1), tmp_path / "run", *words, "--evaluation.every", "2", ranks=1)
    assert code == 0, printed
    assert [printed.count(f"held-out loss after step {step}") for step in (2, 4)] == [1, 1]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    empty = [row for row in rows if row["loss"] is None]
    assert len(rows) == 4 and empty and all(row["perplexity"] is None for row in empty)
    assert all(row["loss"] is None or row["loss"] > 1 for row in rows)
    assert printed.count("no labels,") == len(empty)
    rates = [row["learning_rate"] for row in rows]
    assert min(rates) > 0 and f"learning rate: {rates[0]:.3g} at step 1, {rates[1]:.3g} at step 2, " in printed
