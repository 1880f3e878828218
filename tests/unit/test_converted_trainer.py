"""transformers' Trainer on a converted folder: the losses and gradients of a plain model, however batches are split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LLAMA, VOCABULARY
from tiny_folder import load_tiny, mean_loss, write_tiny
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments, default_data_collator

from hmt_ds.backbones import build_model


def make_documents() -> list[dict[str, list[int]]]:
    """Eight documents of three and a half segments; the first tokens of each, more or fewer, have no labels."""
    rows = torch.randint(3, VOCABULARY, (8, 21))
    return [{"input_ids": r.tolist(), "labels": [-100] * (2 * n) + r[2 * n :].tolist()} for n, r in enumerate(rows)]


def train(model: PreTrainedModel, documents: list[Any], output: Path, batch: int, steps: int) -> list[float]:
    """Train for one step by the Trainer; return the loss and the gradient's norm."""
    arguments = TrainingArguments(
        str(output),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        max_grad_norm=1e9,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=documents, data_collator=default_data_collator)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    return [float(row["loss"]), float(row["grad_norm"])]


def by_formula(model: PreTrainedModel, documents: list[Any]) -> list[float]:
    """Return loss and gradient norm of one batch of all documents, from the logits."""
    batch = default_data_collator(documents)
    loss = mean_loss(model(input_ids=batch["input_ids"]).logits, batch["labels"])
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    model.zero_grad()
    return [loss.item(), norm.item()]


@pytest.mark.parametrize("kind", ["converted", "llama"])
def test_gradient_accumulation(kind, tmp_path):
    """8 x 1, 4 x 2 and 2 x 4 give the mean over the labels of all 8 documents."""
    documents = make_documents()
    if kind == "converted":
        write_tiny(tmp_path / "model")
    else:
        build_model(LLAMA, dtype=torch.float32).model.save_pretrained(tmp_path / "model")
    for batch in (8, 4, 2):
        if kind == "converted":
            model = load_tiny(tmp_path / "model", dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
        expected = by_formula(model, documents)
        assert train(model, documents, tmp_path / "out", batch, 8 // batch) == pytest.approx(expected, rel=1e-4), batch


def test_the_loss_is_divided_by_the_number_that_the_trainer_passes(tmp_path):
    model = load_tiny(write_tiny(tmp_path / "model"))
    batch = default_data_collator(make_documents())
    own = (batch["labels"][:, 1:] != -100).sum()
    loss = model(**batch).loss
    for number in (100, torch.tensor(100)):
        torch.testing.assert_close(model(**batch, num_items_in_batch=number).loss * 100, loss * own)
