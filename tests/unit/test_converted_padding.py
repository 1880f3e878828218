"""Padded batches through a converted folder's forward pass: every row gives the results that it gives alone."""

from typing import Any

import pytest
import torch
from tiny import GPT2, LLAMA, VOCABULARY
from tiny_folder import HMTForCausalLM, load_tiny, mean_loss, write_tiny
from torch import Tensor
from transformers import default_data_collator

PAD = 2
WIDTH = 23
# shorter than a summary, than a segment, on a border, and full; L is 6
LENGTHS = (2, 5, 12, 13, 20, WIDTH)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> HMTForCausalLM:
    """A Llama with a pad id of its own."""
    backbone = LLAMA | {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 1}
    return load_tiny(write_tiny(tmp_path_factory.mktemp("folder") / "hf", backbone))


def make_rows() -> list[Tensor]:
    """Documents without pads."""
    return [torch.randint(3, VOCABULARY, (length,)) for length in LENGTHS]


def pad(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Return a padded batch and its mask."""
    batch, mask = torch.full((len(rows), WIDTH), PAD), torch.zeros(len(rows), WIDTH, dtype=torch.long)
    for ids, real, row in zip(batch, mask, rows, strict=True):
        # "both": pads on either side, as where left-padded prompts are continued to different lengths
        first = {"left": WIDTH - len(row), "right": 0, "both": (WIDTH - len(row)) // 2}[side]
        ids[first : first + len(row)], real[first : first + len(row)] = row, 1
    return batch, mask


def assert_as_alone(model: HMTForCausalLM, rows: list[Tensor], ids: Tensor, mask: Tensor, **options: Any) -> None:
    """Compare a batch with its rows alone: logits of tokens, and the mean loss over all labels."""
    labels = ids.masked_fill(mask == 0, -100)
    found = model(ids, labels=labels, **options)
    alone = [model(row[None]).logits for row in rows]
    for logits, real, one in zip(found.logits, mask.bool(), alone, strict=True):
        torch.testing.assert_close(logits[real], one[0], **CLOSE)
    losses = [mean_loss(one, row[None]) * (len(row) - 1) for one, row in zip(alone, rows, strict=True)]
    expected = torch.stack(losses).sum() / sum(len(row) - 1 for row in rows)
    torch.testing.assert_close(found.loss, expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_rows_of_a_masked_batch(model, side):
    rows = make_rows()
    ids, mask = pad(rows, side)
    assert_as_alone(model, rows, ids, mask, attention_mask=mask)
    # pads are left out of the loss even if they have labels
    ids[mask == 0] = 7
    masked = model(ids, attention_mask=mask, labels=ids.clone()).loss
    torch.testing.assert_close(masked, model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss)


def test_gradients_of_a_masked_batch(model):
    """Left pads leave no trace in the gradients either."""
    rows = make_rows()
    gradients = []
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_logits_of_a_masked_batch(model, side):
    """`logits_to_keep` counts positions of the padded batch."""
    ids, mask = pad(make_rows(), side)
    logits = model(ids, attention_mask=mask).logits
    real = mask[:, -3:].bool()
    torch.testing.assert_close(model(ids, attention_mask=mask, logits_to_keep=3).logits[real], logits[:, -3:][real])


def test_position_embeddings_that_are_learned(tmp_path):
    """GPT-2's positions depend on where a row begins."""
    model = load_tiny(write_tiny(tmp_path / "hf", GPT2))
    rows = make_rows()
    ids, mask = pad(rows, "left")
    assert_as_alone(model, rows, ids, mask, attention_mask=mask)


def test_pads_at_the_end_are_known_without_a_mask(model):
    rows = make_rows()
    ids, mask = pad(rows, "right")
    assert_as_alone(model, rows, ids, mask)


def test_a_harness_that_pads_with_zeros(tmp_path):
    """lm-evaluation-harness pads with 0 and passes no mask: `pad_token_id=0` at loading says so."""
    model = load_tiny(write_tiny(tmp_path / "hf"), pad_token_id=0)
    rows = make_rows()
    ids, mask = pad(rows, "right")
    assert_as_alone(model, rows, ids.masked_fill(mask == 0, 0), mask)


def test_text_is_not_taken_for_pads(model, tmp_path):
    """The pad id inside a row or with a label, and a pad id that ends texts, are read as text."""
    ids = torch.randint(3, VOCABULARY, (1, 15))
    ids[0, 4:7] = PAD
    read_as_text = torch.ones_like(ids)
    torch.testing.assert_close(model(ids).logits, model(ids, attention_mask=read_as_text).logits, **CLOSE)
    ids[0, -3:] = PAD
    text = mean_loss(model(ids, attention_mask=read_as_text).logits, ids)
    torch.testing.assert_close(model(ids, labels=ids.clone()).loss, text, **CLOSE)
    for backbone in (LLAMA, LLAMA | {"pad_token_id": 1, "eos_token_id": 1}, LLAMA | {"pad_token_id": 0}):
        other = load_tiny(write_tiny(tmp_path / str(len(list(tmp_path.iterdir()))), backbone))
        ids[0, -3:] = 1 if backbone.get("pad_token_id") else 0
        other.generation_config.bos_token_id = 0
        expected = other(ids, attention_mask=read_as_text).logits
        torch.testing.assert_close(other(ids).logits, expected, **CLOSE)


def test_a_collated_batch_of_a_tokenizer(model):
    """A batch as tokenizers and collators make it, one row of nothing but pads among the others."""
    rows = make_rows()
    ids, mask = pad(rows, "left")
    ids[0], mask[0] = PAD, 0
    batch = default_data_collator([{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)])
    logits = model(**batch, token_type_ids=torch.zeros_like(ids)).logits
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(logits[-2][mask[-2].bool()], model(rows[-2][None]).logits[0], **CLOSE)
