"""The data that a run's evaluation reads, and its messages if it cannot read all of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
import yaml

from hmt_ds import evaluate as evaluate_module
from hmt_ds.evaluation.losses import DocumentLosses
from hmt_ds.memory import MemorySettings
from hmt_ds.training import validation
from hmt_ds.training.validation import Validation

ALL = ["swapped", "none"]


def evaluate(
    folder: Path, monkeypatch, mode: str = "rmt", rows: int = 2, partners: bool = True, **how: Any
) -> list[str]:
    """Evaluate documents whose losses are known; return with which other memories they were read."""
    asked: list[str] = []

    def document_losses(reader: Any, held_out: Any, documents: int, depth: int, instead: list[str]) -> DocumentLosses:
        asked.extend(instead)
        ones = np.ones((documents, depth, 8))
        names = [name for name in ("own", *instead) if name != "swapped" or partners]
        return DocumentLosses(16, dict.fromkeys(names, ones), dict.fromkeys(names, ones))

    monkeypatch.setattr(validation, "document_losses", document_losses)
    recipe: Any = SimpleNamespace(
        training=SimpleNamespace(output=str(folder), batch_size=rows),
        evaluation=SimpleNamespace(segments_read=[1], batch_size=None),
        memory=MemorySettings(16, mode),
        data=SimpleNamespace(sources=lambda _: {"data.validation": SimpleNamespace(source="text.txt")}),
    )
    held_out = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]], "length": [2, 1]})
    prepared: Any = SimpleNamespace(validation=held_out, tokenizer="words")
    Validation(recipe, prepared, cast(Any, None), lambda: None).evaluate(7, **how)
    return asked


@pytest.mark.parametrize("mode", ["hmt", "rmt"])
def test_everything_is_read_at_the_end(tmp_path, monkeypatch, capsys, mode):
    assert evaluate(tmp_path, monkeypatch, mode) == ALL
    printed = capsys.readouterr().out
    assert "the memory is ignored" in printed and "were not read" not in printed
    assert ("positions below 8 are not scored causally" in printed) == (mode == "hmt")


def test_a_run_that_goes_on_reads_once(tmp_path, monkeypatch, capsys):
    assert evaluate(tmp_path, monkeypatch, in_passing=True) == []
    printed = capsys.readouterr().out
    assert "cost" not in printed and "the memory" not in printed and "were not read" not in printed


def test_a_backbone_is_read_once(tmp_path, monkeypatch, capsys):
    assert evaluate(tmp_path, monkeypatch, "backbone") == []
    assert "cost" not in capsys.readouterr().out


@pytest.mark.parametrize(("rows", "asked"), [(1, ["none"]), (3, ALL)], ids=["one row", "no partner"])
def test_a_swap_that_cannot_be_done_is_told(tmp_path, monkeypatch, capsys, rows, asked):
    assert evaluate(tmp_path, monkeypatch, rows=rows, partners=False) == asked
    printed = capsys.readouterr().out
    assert "others' memory" not in printed and "cost of no memory" in printed
    assert "another document's memories were not read: it takes two rows of a batch" in printed
    assert f"(evaluation.batch_size is {rows})\n" in printed


class Reached(Exception):
    """The recipe was read."""


def test_a_recipe_need_not_be_complete_without_its_overrides(tmp_path, monkeypatch):
    """It is the overrides that say where the results go."""
    recipe = {
        "model": {"source": "folder"},
        "memory": {"segment_length": 16, "recall_dim": 4},
        "data": {"train": {"source": "a.txt"}, "validation": {"source": "b.txt"}},
        "training": {"steps": 1},
        "optimizer": {"lr": 0.1},
        "deepspeed": "zero1.json",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    monkeypatch.setattr(evaluate_module, "prepare_together", reached)
    with pytest.raises(Reached):
        evaluate_module.evaluate(str(tmp_path / "recipe.yaml"), ["--training.output", "run"], torch.device("cpu"))
