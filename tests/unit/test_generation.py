"""Greedy generation against the argmax of whole forward passes, over borders, in batches and padded batches."""

from collections import deque
from typing import Any

import pytest
import torch
from tiny import GPT2, LLAMA, L, document, empty_state, make_model
from torch import Tensor

from hmt_ds.conversion.modeling_hmt import HMTForCausalLM
from hmt_ds.memory import read_window, split_document

NEW, PAD = 5 * L + 2, 0
KINDS: dict[str, dict[str, Any]] = {
    "hmt": {"mode": "hmt"},
    "rmt": {"mode": "rmt"},
    "backbone": {"mode": "backbone"},
    "no sensory tokens": {"mode": "hmt", "sensory_tokens": 0},
    "adapted hmt": {"mode": "hmt", "interface": "adapted", "recalled_memories": 2, "memory_tokens": 2},
    "adapted rmt": {"mode": "rmt", "interface": "adapted"},
    "adapted rmt, last three": {"mode": "rmt", "interface": "adapted", "last_memories": 3},
    "adapted hmt, last two": {"mode": "hmt", "interface": "adapted", "last_memories": 2, "memory_tokens": 2},
    "adapted backbone": {"mode": "backbone", "interface": "adapted"},
}
BACKBONES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "a sliding window": LLAMA | {"model_type": "mistral", "sliding_window": 5},
    "alternating windows": {
        **(LLAMA | {"model_type": "gemma3_text", "head_dim": 4, "sliding_window": 3, "query_pre_attn_scalar": 4}),
        "final_logit_softcapping": 2.0,
    },
    "no position ids": {"model_type": "bloom", "vocab_size": 37, "hidden_size": 16, "n_layer": 2, "n_head": 4}
    | {"initializer_range": 0.3},
    "recurrent": LLAMA | {"model_type": "mamba", "state_size": 4, "time_step_min": 0.1, "time_step_max": 1.0},
}


def make_causal_lm(backbone: dict[str, Any] = LLAMA, kind: str = "hmt") -> HMTForCausalLM:
    """A random model that ends nowhere."""
    model = HMTForCausalLM.around(make_model(backbone, **KINDS[kind]))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return model


def make_rows() -> list[Tensor]:
    """Documents that cross their borders at different times; one ends on a border, and one is a segment."""
    torch.manual_seed(0)
    return [document(length) for length in (3, 9, L, 2 * L + 1)]


@torch.no_grad()
def argmax_of_whole_passes(model: HMTForCausalLM, ids: Tensor, new: int) -> Tensor:
    """Continue a document ``[1, t]`` with one whole forward pass for every token, without a cache."""
    for _ in range(new):
        ids = torch.cat([ids, model(ids, logits_to_keep=1).logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return ids


def padded(rows: list[Tensor], side: str) -> dict[str, Tensor]:
    """A batch with pads on the left, on the right, or in turn."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.long)
    for n, row in enumerate(rows):
        first = width - len(row) if side == "left" or (side == "mixed" and n % 2) else 0
        ids[n, first : first + len(row)], mask[n, first : first + len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["llama", "gpt2"])
def test_greedy_tokens_are_those_of_whole_passes(backbone, kind):
    """Over five borders, with and without the cache; and a padded batch has the rows that each gives alone."""
    model, rows = make_causal_lm(BACKBONES[backbone], kind), make_rows()
    alone = []
    for row in rows:
        expected = argmax_of_whole_passes(model, row[None], NEW)
        assert torch.equal(model.generate(row[None], max_new_tokens=NEW), expected)
        assert torch.equal(model.generate(row[None], max_new_tokens=NEW, use_cache=False), expected)
        alone.append(expected[0, len(row) :])
    assert len(torch.cat(alone).unique()) > 2  # or the test would be of something else
    for side in ("left", "right", "mixed"):
        batch = padded(rows, side)
        for cached, new in ((True, NEW), (False, L + 3)):
            found = model.generate(**batch, max_new_tokens=new, use_cache=cached)[:, batch["input_ids"].shape[1] :]
            assert torch.equal(found, torch.stack(alone)[:, :new]), (side, cached)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in ("llama", "gpt2")])
@pytest.mark.parametrize("kind", ["hmt", "adapted hmt"])
def test_other_backbones(backbone, kind):
    """Sliding windows see no pads, models without position ids count by the mask, recurrent ones have no keys."""
    model, rows = make_causal_lm(BACKBONES[backbone], kind), make_rows()
    if backbone == "no position ids":
        model.float()  # in float64 transformers' own eager attention gives nan at pads in front
    expected = torch.stack([argmax_of_whole_passes(model, row[None], NEW)[0, len(row) :] for row in rows])
    batch = padded(rows, "left")
    assert torch.equal(model.generate(**batch, max_new_tokens=NEW)[:, batch["input_ids"].shape[1] :], expected)
    assert len(expected.unique()) > 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("hmt", "no sensory tokens")])
def test_what_is_written_is_what_one_reading_predicts(kind):
    """One pass over the written document has the same argmax at every place.

    (The paper's mode hmt asks for memories with tokens that are not written yet: there the last place alone counts.)
    """
    model = make_causal_lm(kind=kind)
    ids = torch.stack([document(3 * L + 1), document(3 * L + 1)])
    written = model.generate(ids, max_new_tokens=NEW)
    with torch.no_grad():
        whole, hmt = split_document(written, L), model.hmt
        outputs = [o for o, _ in read_window(hmt, hmt.settings, whole, empty_state(hmt, 2), with_logits=True)]
    logits = torch.cat([output.logits for output in outputs], dim=1)
    assert torch.equal(logits[:, 3 * L : 3 * L + NEW].argmax(dim=2), written[:, 3 * L + 1 :])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_behind_a_cache(kind, side):
    """However a padded batch is cut, its last part has the logits of one whole pass; so have all its columns."""
    model = make_causal_lm(kind=kind)
    batch = padded(make_rows(), side)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        expected = model(**batch).logits
        for cut in (1, 4, L, L + 1, 2 * L):
            cache = model(ids[:, :cut], attention_mask=mask[:, :cut], use_cache=True).past_key_values
            assert cache.get_seq_length() == cut
            found = model(ids[:, cut:], attention_mask=mask, past_key_values=cache).logits
            real = mask[:, cut:].bool()
            # the paper's summary reads ahead: columns before the last may know less of a segment that was cut
            compared = real & (torch.arange(real.shape[1]) >= (real.shape[1] - 1 if kind in ("hmt",) else 0))
            torch.testing.assert_close(found[compared], expected[:, cut:][compared], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", [0, 2, L - 1, L, L + 1])
@pytest.mark.parametrize("kind", ["hmt", "adapted rmt"])
def test_behind_its_end_a_row_has_pads(kind, where):
    """Over borders of segments too, and the other row goes on; all end where the last one ends."""
    model, rows = make_causal_lm(kind=kind), make_rows()[1:3]
    batch = padded(rows, "left")
    row, other = model.generate(**batch, max_new_tokens=NEW)[:, batch["input_ids"].shape[1] :].tolist()
    end = row[where]
    first = row.index(end)
    expected = [kept[: kept.index(end) + 1] if end in kept else kept for kept in (row, other)]
    longest = max(map(len, expected))
    found = model.generate(**batch, max_new_tokens=NEW, eos_token_id=end)[:, batch["input_ids"].shape[1] :]
    assert found.tolist() == [kept + [PAD] * (longest - len(kept)) for kept in expected] and first <= where


@pytest.mark.parametrize("backbone", ["llama", "gpt2"])
@pytest.mark.parametrize("length", [1, 4, L])
def test_a_short_document_without_memory_is_the_backbone_alone(backbone, length):
    """Within the first segment nothing is around the tokens."""
    model, ids = make_causal_lm(BACKBONES[backbone], "backbone"), torch.stack([document(length), document(length)])
    options = {"max_new_tokens": L + 1 - length, "eos_token_id": None, "pad_token_id": PAD}
    assert torch.equal(model.generate(ids, **options), model.backbone_model.generate(ids, **options))


def test_no_position_beyond_the_last():
    """A whole segment of GPT-2 takes all 32 positions with what is around it, and the next one begins in time."""
    model = HMTForCausalLM.around(make_model(GPT2, segment_length=26, sensory_tokens=4))
    assert model.hmt.settings.positions == 32
    model.generation_config.eos_token_id = None
    ids = document(40)[None]
    assert torch.equal(model.generate(ids, max_new_tokens=60), argmax_of_whole_passes(model, ids, 60))


def tensors_of(value: object) -> list[Tensor]:
    """All tensors of a cache, with those of the keys and values, and of what can be undone."""
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, list | tuple | deque) else getattr(value, "__dict__", {}).values()
    return [tensor for part in parts for tensor in tensors_of(part)]


@pytest.mark.parametrize("kind", ["hmt", "adapted hmt", "rmt"])
def test_a_cache_does_not_grow_with_the_document(kind):
    """Once all memories are there, a document of ten times the length leaves as many bytes."""
    model, sizes = make_causal_lm(kind=kind), []
    for segments in (10, 100):
        with torch.no_grad():
            cache = model(document(segments * L + 2)[None], use_cache=True, logits_to_keep=1).past_key_values
        kept = tensors_of(cache)
        assert len(kept) > 10  # keys and values of two layers among them
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept))
    assert sizes[0] == sizes[1] < 50_000
