"""Generation ends where a row ends, and goes on where positions end."""

from typing import Any

import pytest
import torch
from tiny import GPT2, LLAMA, L, document, empty_state, make_model
from torch import Tensor

from hmt_ds.evaluation import generation
from hmt_ds.evaluation.generation import generate
from hmt_ds.memory import HMT, read_window, split_document

NEW, PAD, UNUSED = 20, 0, 36
KINDS: dict[str, dict[str, Any]] = {
    "hmt": {"mode": "hmt"},
    "rmt": {"mode": "rmt"},
    "backbone": {"mode": "backbone"},
    "adapted hmt": {"mode": "hmt", "interface": "adapted", "recalled_memories": 2, "memory_tokens": 2},
    "adapted rmt": {"mode": "rmt", "interface": "adapted"},
    "adapted backbone": {"mode": "backbone", "interface": "adapted"},
}


def model_and_documents(backbone: dict[str, Any], kind: str) -> tuple[HMT, Tensor]:
    """Two documents of 1.5 segments, so that L new tokens come at a time."""
    model = make_model(backbone, **KINDS[kind])
    torch.manual_seed(0)
    return model, torch.stack([document(9), document(9)])


@pytest.mark.parametrize(
    ("backbone", "kind", "where"),
    [
        (LLAMA, "hmt", 2),
        (LLAMA, "adapted hmt", 3),
        (LLAMA, "adapted rmt", L + 1),
        (GPT2, "adapted backbone", 8),
        (GPT2, "adapted hmt", 12),
        (LLAMA, "hmt", L - 1),
        (LLAMA, "hmt", L + 1),
        (LLAMA, "rmt", L - 1),
        (LLAMA, "backbone", 2),
        (GPT2, "hmt", 2),
        (GPT2, "backbone", L),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("pad", [PAD, None])
def test_behind_its_end_a_row_has_pads(backbone, kind, where, pad):
    """Over borders of segments too, and the other row goes on; without a pad the end token is one."""
    model, ids = model_and_documents(backbone, kind)
    row, other = generate(model, ids, NEW, eos_token_id=None, pad_token_id=PAD).tolist()
    end = row[where]
    assert end not in row[:where] + other  # or the test would be of something else
    found = generate(model, ids, NEW, eos_token_id=[end, UNUSED] if pad is None else end, pad_token_id=pad).tolist()
    assert found == [row[: where + 1] + [end if pad is None else PAD] * (NEW - 1 - where), other]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hmt"])
def test_what_is_written_is_what_one_reading_predicts(kind):
    """Over three borders, the last k tokens and the memories are those of one document. (The paper's mode hmt asks for
    memories with tokens that are not written yet.)"""
    model = make_model(**KINDS[kind])
    torch.manual_seed(0)
    ids = torch.stack([document(3 * L + 1), document(3 * L + 1)])  # each open segment begins with one token
    new = generate(model, ids, NEW, eos_token_id=None, pad_token_id=PAD)
    whole = split_document(torch.cat([ids, new], dim=1), L)
    with torch.no_grad():
        outputs = [o for o, _ in read_window(model, model.settings, whole, empty_state(model, 2), with_logits=True)]
    logits = torch.cat([output.logits for output in outputs], dim=1)
    assert torch.equal(logits[:, 3 * L : 3 * L + NEW].argmax(dim=2), new)
    assert len(new.unique()) > 2


@pytest.mark.parametrize("where", [0, 2, L - 1, L + 1])
@pytest.mark.parametrize("rows", [1, 2], ids=["one", "two_alike"])
def test_it_ends_where_all_rows_have_ended(where, rows):
    """Generation ends there, even if the end token is the last one that fits into a segment."""
    model, ids = model_and_documents(LLAMA, "hmt")
    ids = ids[:1].expand(rows, -1)
    row = generate(model, ids[:1], NEW, eos_token_id=None, pad_token_id=PAD)[0].tolist()
    assert row[where] not in row[:where]
    found = generate(model, ids, NEW, eos_token_id=row[where], pad_token_id=PAD).tolist()
    assert found == [row[: where + 1]] * rows


@pytest.mark.parametrize("backbone", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("length", [1, 4, L])
def test_a_short_document_without_memory_is_the_backbone_alone(backbone, length):
    """The first segment has no sensory tokens, and no padding in their place."""
    model, ids = make_model(backbone, mode="backbone"), torch.stack([document(length), document(length)])
    options = {"max_new_tokens": L, "eos_token_id": None, "pad_token_id": PAD}
    alone = model.backbone.model.generate(ids, do_sample=False, **options)
    assert torch.equal(generate(model, ids, **options), alone[:, length:])


@pytest.mark.parametrize("kind", ["hmt", "rmt", "adapted hmt", "adapted rmt"])
@pytest.mark.parametrize("length", [1, 4, L])
def test_a_short_document_has_no_sensory_tokens(kind, length):
    """The number of sensory tokens changes nothing until one segment is read."""
    ids = document(length)[None]
    some, none = (make_model(**KINDS[kind], sensory_tokens=n) for n in (2, 0))
    options = {"max_new_tokens": L, "eos_token_id": None, "pad_token_id": PAD}
    assert torch.equal(generate(some, ids, **options), generate(none, ids, **options))


@pytest.mark.parametrize(
    ("kind", "tokens", "calls"),
    [
        ("hmt", 48, [4, 6]),
        ("rmt", 48, [4, 6]),
        ("backbone", 48, [5, 5]),
        ("hmt", 40, [10]),
        ("hmt", 24, [8, 2]),
        ("adapted rmt", 48, [3, 7]),
        ("adapted backbone", 48, [4, 6]),
    ],
)
def test_no_position_beyond_the_last(monkeypatch, kind, tokens, calls):
    """Of 32: a prompt, 4 sensory tokens (none at first) and an open segment of 24 leave 3, and one is not read.

    With the adapted interface a sink takes one more.
    """
    model = make_model(GPT2, **KINDS[kind], segment_length=24, sensory_tokens=4)
    asked, plain = [], generation.continue_segment

    def noted(*given: Any, **options: Any) -> Tensor:
        asked.append(options["max_new_tokens"])
        return plain(*given, **options)

    monkeypatch.setattr(generation, "continue_segment", noted)
    new = generate(model, document(tokens)[None], 10, eos_token_id=None, pad_token_id=PAD)
    assert new.shape == (1, 10) and asked == calls
