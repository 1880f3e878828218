"""Forty malformed recipes, written from the top README alone before any check was read: each is refused in a line."""

import json
import time
from pathlib import Path

import pytest
from bad_folder import errors_in
from recipe_mutations import run_check

PROJECT = Path(__file__).parents[2]
BASE = """\
model:
  source: {model_type: llama, vocab_size: 384, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
           num_attention_heads: 4, num_key_value_heads: 4, max_position_embeddings: 128}
  tokenizer: hmt_ds/data/samples/words
  precision: fp32
memory:
  segment_length: 18
  sensory_tokens: 6
data:
  train: {source: my.jsonl}
  validation: {source: held-out.jsonl}
training:
  output: runs/mine
  steps: 30
  bptt_depth: {0: 2, 10: 4}
  batch_size: 2
optimizer:
  lr: 1.0e-3
schedule:
  name: WarmupCosineLR
  params: {warmup_num_steps: 5}
deepspeed: ds_configs/zero1.json
"""


def put(old: str, new: str) -> bytes:
    assert old in BASE, old
    return BASE.replace(old, new).encode()


# what is written, and what its line must say
FORTY = {
    "a section misspelt": (put("training:", "trainning:"), "trainning: unknown key; did you mean training?"),
    "a key misspelt": (
        put("batch_size", "bach_size"),
        "training.bach_size: unknown key; did you mean training.batch_size?",
    ),
    "a key one level too high": (put("  batch_size: 2\n", "batch_size: 2\n"), "batch_size: unknown key"),
    "a mode for a section": (
        put("memory:\n  segment_length: 18\n  sensory_tokens: 6\n", "memory: hmt\n"),
        "memory: must be a mapping",
    ),
    "a section whose keys lost their indentation": (
        put("  segment_length: 18\n  sensory_tokens: 6", "segment_length: 18\nsensory_tokens: 6"),
        "memory: must be a mapping",
    ),
    "tabs": (put("  segment_length", "\tsegment_length"), "'\\t' that cannot start any token"),
    "no colon": (put("steps: 30", "steps 30"), "line 14, column 3: steps 30"),
    "a brace left open": (put("{0: 2, 10: 4}", "{0: 2, 10: 4"), "line 15, column 15"),
    "a number in words": (put("steps: 30", "steps: thirty"), "training.steps: must be a whole number"),
    "half a step": (put("steps: 30", "steps: 30.5"), "training.steps: must be a whole number"),
    "negative steps": (put("steps: 30", "steps: -30"), "training.steps: must be at least 1"),
    "a thousand billion steps": (put("steps: 30", "steps: 1000000000000"), "training.steps: must be at most"),
    "a decimal comma": (put("1.0e-3", "1,5e-3"), "optimizer.lr: must be a number, got '1,5e-3'"),
    "a rate that is no number": (put("1.0e-3", ".nan"), "optimizer.lr: must be a finite number"),
    "a rate beyond floats": (put("1.0e-3", "1.0e+400"), "optimizer.lr: must be a finite number"),
    "no rows": (put("batch_size: 2", "batch_size: 0"), "training.batch_size: must be at least 1"),
    "an unknown precision": (put("fp32", "fp8"), "model.precision: must be 'fp32', 'bf16' or 'fp16'"),
    "two precisions": (put("fp32", "[bf16, fp32]"), "model.precision: must be 'fp32', 'bf16' or 'fp16'"),
    "a depth given twice": (put("{0: 2, 10: 4}", "{0: 2, 0: 4}"), "line 15: 0 is given twice"),
    "depths without a first": (
        put("{0: 2, 10: 4}", "{5: 2, 10: 4}"),
        "training.bptt_depth: a schedule must begin at step 0",
    ),
    "depths as a list": (put("{0: 2, 10: 4}", "[2, 4, 8]"), "training.bptt_depth: must be a whole number or a mapping"),
    "a segment beyond the positions": (
        put("segment_length: 18", "segment_length: 100000"),
        "the backbone was made for 128",
    ),
    "more sensory tokens than a segment has": (put("sensory_tokens: 6", "sensory_tokens: 60"), "sensory_tokens"),
    "two kinds of training data": (put("data:\n", "data:\n  retrieval: {kind: keys, keys: 576}\n"), "retrieval"),
    "documents that are not there": (put("my.jsonl", "mine.jsonl"), "mine.jsonl"),
    "a DeepSpeed file that is not there": (put("zero1.json", "zero9.json"), "zero9.json"),
    "an unknown schedule": (put("WarmupCosineLR", "WarmupCosin"), "WarmupCosin"),
    "an argument that the schedule does not have": (put("warmup_num_steps", "warmup_steps"), "warmup_steps"),
    "more stages than layers": (
        put("deepspeed:", "pipeline: {stages: 7}\ndeepspeed:"),
        "pipeline.stages is 7, the backbone has 2 layers",
    ),
    "a negative size of LoRA": (
        put("  precision", "  train: lora\n  lora: {rank: -4}\n  precision"),
        "model.lora.rank: must be at least 1",
    ),
    "UTF-16 without a mark": (BASE.encode("utf-16-le"), "unacceptable character #x0000"),
    "an empty file": (b"", "a recipe must be a mapping of sections"),
    "a list": (b"- " + BASE.replace("\n", "\n  ").encode(), "a recipe must be a mapping of sections"),
    "two documents": ((BASE + "---\n" + BASE).encode(), "but found another document"),
    "an alias of nothing": (put("1.0e-3", "*rate"), "undefined alias 'rate'"),
    "a list that contains itself": (
        put("{source: my.jsonl}", "&train [*train]"),
        "line 10: nested more than 50 levels",
    ),
    "typographic quotes": (put("fp32", "\u201cfp32\u201d"), "model.precision: must be"),
    "heads that do not divide the width": (put("hidden_size: 32", "hidden_size: 30"), "hidden"),
    "a python object": (put("runs/mine", "!!python/object/apply:os.getcwd []"), "could not determine a constructor"),
    "brackets nested too deeply": (put("runs/mine", "[" * 5000 + "]" * 5000), "nested more than 50 levels"),
}
MORE_LINES = {"a section whose keys lost their indentation": 3}  # one for each key beside it


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder where the recipe itself is correct."""
    folder = tmp_path_factory.mktemp("recipes")
    for name in ("hmt_ds", "ds_configs"):
        (folder / name).symlink_to(PROJECT / name)
    line = json.dumps({"text": "The flat comb is in Damascus . " * 60}) + "\n"
    for name in ("my.jsonl", "held-out.jsonl"):
        (folder / name).write_text(line * 8)
    (folder / "correct.yaml").write_text(BASE)
    return folder


def test_the_recipe_itself_is_correct(folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, said = run_check(Path("correct.yaml"))
    assert code == 0 and not errors_in(said), said


@pytest.mark.parametrize("name", FORTY)
def test_refused_in_a_line(folder, monkeypatch, name):
    content, words = FORTY[name]
    monkeypatch.chdir(folder)
    (folder / "r.yaml").write_bytes(content)
    began = time.process_time()
    code, said = run_check(Path("r.yaml"))
    assert time.process_time() - began < 5  # 0.5 alone; a collection of garbage in a long test run takes seconds
    lines = said.splitlines()
    assert code == 2 and len(lines) == MORE_LINES.get(name, 1) and errors_in(said) == lines, said
    assert words in lines[0] and all(len(line) < 400 for line in lines), said
