"""Comparison with HMT-pytorch: its arguments, and recipes that it does not support. A fake clone records its calls."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hmt_ds.backbones import read_config
from hmt_ds.benchmark import reference
from hmt_ds.memory import MemorySettings
from hmt_ds.reporting.bench_tables import reference_table

CPU = torch.device("cpu")
LLAMA = {"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "max_position_embeddings": 64}
SIZES = MemorySettings(segment_length=10, recall_dim=8, sensory_tokens=2, cached_memories=3)


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Iterator[Path]:
    """Write a fake clone of HMT-pytorch: the same names and arguments, and a model that records its calls."""
    monkeypatch.delitem(sys.modules, "modeling_rmt.language_modeling", raising=False)
    monkeypatch.delitem(sys.modules, "modeling_rmt", raising=False)
    file = tmp_path / "modeling_rmt" / "language_modeling.py"
    file.parent.mkdir()
    file.with_name("__init__.py").touch()
    file.write_text(CLONE)
    yield tmp_path
    for name in ("modeling_rmt.language_modeling", "modeling_rmt"):
        sys.modules.pop(name, None)


CLONE = """
import evaluate, torch, types
calls = []
class MemoryCell(torch.nn.Module):
    def __init__(self, base_model, num_mem_tokens, num_prepend):
        super().__init__()
        self.model, self.given = base_model, (num_mem_tokens, num_prepend)
class RecurrentWrapper(torch.nn.Module):
    def __init__(self, memory_cell, emb=None, word_emb_dim=4096, hidden_dim=4096, ltm_context=100, **more):
        super().__init__()
        evaluate.load("rouge")
        self.memory_cell = memory_cell
        self.mem = torch.nn.Parameter(torch.zeros(1, word_emb_dim))
        calls.append((memory_cell.given, word_emb_dim, hidden_dim, ltm_context, more))
    def forward(self, input_ids, labels=None, attention_mask=None, segment_size=1022, sum_fraction=0.5):
        calls.append((tuple(input_ids.shape), int(attention_mask.sum()), segment_size, sum_fraction, self.mem.dtype))
        if input_ids.shape[0] > 8:
            raise torch.OutOfMemoryError("no more")
        return types.SimpleNamespace(loss=self.mem.float().sum()), []
"""
WORK = reference.Work(LLAMA, SIZES, batch=2, segments=3, seed=0)


def test_reference_gets_the_same_work(clone):
    found = reference.run_reference(clone, WORK, CPU, 2)
    made, *passes = sys.modules["modeling_rmt.language_modeling"].calls
    assert made[:4] == ((1, 2), 16, 8, 3) and made[4]["mask_size"] == made[4]["segment_size"] == 10
    assert passes == [((2, 30), 60, 10, 0.5, torch.bfloat16)] * 3  # one of them to warm up
    assert len(found["seconds"]) == 2 and not found["out_of_memory"]
    assert found["tokens_per_second_per_gpu"] == pytest.approx(60 / (sum(found["seconds"]) / 2))
    assert found["segment_length_option_tokens"] == 10 + 2 + 2
    assert "evaluate" not in sys.modules and str(clone) not in sys.path


def test_reference_out_of_memory_is_a_row(clone):
    work = reference.Work(LLAMA, SIZES, batch=9, segments=3, seed=0)
    found = reference.run_reference(clone, work, CPU, 2)
    assert found["out_of_memory"] and found["tokens_per_second_per_gpu"] is None
    result = {"speed": {"forward_and_backward": {"tokens_per_second_per_gpu": 10.0}}, "memory": {}, "reference": found}
    assert list(reference_table(result).columns[1].cells) == ["10", "out of memory"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, None),
        ({"precision": "fp32"}, "model.precision is fp32 and model.train whole: only bf16"),
        ({"train": "lora"}, "model.train lora: only bf16 with whole can be compared"),
        ({"settings": MemorySettings(10, mode="rmt")}, "memory.mode is rmt and memory.memory_tokens 1: only hmt"),
        ({"settings": MemorySettings(10, memory_tokens=2)}, "memory.memory_tokens 2: only hmt with 1 can be compared"),
        ({"config": types.SimpleNamespace(model_type="odd")}, "does not support odd"),
        ({"folder": Path("nowhere")}, "nowhere has no modeling_rmt/language_modeling.py"),
    ],
)
def test_unsupported_work_is_named(clone, monkeypatch, changes, line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(reference, "NEEDS", {"json": "json"})
    config, settings = read_config(LLAMA), MemorySettings(10)
    arguments = {"folder": clone, "config": config, "settings": settings, "precision": "bf16", "train": "whole"}
    problems = reference.reference_problems(**(arguments | changes))
    assert len(problems) == (line is not None) and all(line in problem for problem in problems)


def test_missing_requirements_are_named(clone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(reference, "NEEDS", {"no_such_module": "no-such-package"})
    found = reference.reference_problems(clone, read_config(LLAMA), MemorySettings(10), "bf16", "whole")
    assert [line.partition(": ")[0] for line in found] == ["--reference"] * 2
    assert "pip install no-such-package" in found[0] and "needs a GPU" in found[1]
