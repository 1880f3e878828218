"""The adapted interface around every family: gradients, causality, pads; and the traps of recurrent backbones."""

from dataclasses import replace

import pytest
import torch
from test_backbones import CONFIGS, make_backbone
from tiny import (
    VOCABULARY,
    L,
    distance,
    document,
    empty_state,
    make_model,
    make_settings,
    make_window,
    one_graph,
    segment_wise,
    take_gradients,
)
from torch import Tensor

from hmt_ds.backbones import build_model
from hmt_ds.memory import HMT, MemoryState, Window, read_window

each_kind = pytest.mark.parametrize("kind", CONFIGS)
each_mode = pytest.mark.parametrize("mode", ["hmt", "rmt"])


def adapted(kind: str, mode: str = "hmt") -> HMT:
    """A tiny model of a family with two memory tokens, whose scale and shift are not trivial.

    Its sliding window is a whole segment with all around it: the last layer's last position must see the sink.
    """
    window = {"sliding_window": 32} if "sliding_window" in CONFIGS[kind] else {}
    model = make_model(CONFIGS[kind] | window, interface="adapted", mode=mode, memory_tokens=2)
    for parameter in model.memory_embedding.parameters():
        torch.nn.init.normal_(parameter)
    return model


def outputs_of(model: HMT, window: Window) -> list:
    """What each segment of a window gives, with logits."""
    state = empty_state(model, len(window.input_ids))
    return [output for output, _ in read_window(model, model.settings, window, state, with_logits=True)]


def logits_of(model: HMT, ids: Tensor) -> Tensor:
    """``[tokens, v]``."""
    with torch.no_grad():
        outputs = outputs_of(model, make_window([[ids]]))
    return torch.cat([output.logits[0] for output in outputs])[: len(ids)]


@each_kind
@each_mode
def test_gradients_segment_by_segment(kind, mode):
    """Those of one graph, of every weight; every weight of the memory has one. Rows are of unequal length."""
    model = adapted(kind, mode)
    window = make_window([[document(4 * L + 2)], [document(L - 1), document(2 * L)]])
    one_graph(model, window, empty_state(model, 2))
    expected = take_gradients(model)
    segment_wise(model, window, empty_state(model, 2))
    assert distance(take_gradients(model), expected) < 2e-6
    memory = {name: gradient for name, gradient in expected.items() if not name.startswith("backbone.")}
    # sink, P_0, W, scale, shift; with recall T, W_q, W_k and recency too
    assert len(memory) == (9 if mode == "hmt" else 5)
    assert all(gradient.isfinite().all() and gradient.norm() > 1e-9 for gradient in memory.values())


@each_kind
def test_a_token_changes_no_earlier_logit(kind):
    """It changes later ones, through the memory also those beyond the sensory tokens."""
    model, ids = adapted(kind), document(4 * L)
    before = logits_of(model, ids)
    for position in (2, L - 1, 2 * L):
        other = ids.clone()
        other[position] = 1 + ids[position] % (VOCABULARY - 1)
        after = logits_of(model, other)
        assert torch.equal(after[:position], before[:position])
        assert not torch.equal(after[-L:], before[-L:])


@each_kind
def test_nothing_depends_on_pads(kind):
    """Neither on their ids nor on their presence: a short segment is read as the plain sequence is."""
    model, ids = adapted(kind), document(L - 2)
    padded = make_window([[ids], [document(3 * L)]])
    others = replace(padded, input_ids=padded.input_ids.where(padded.input_ids > 0, 5))
    assert not torch.equal(padded.input_ids, others.input_ids)
    first, same = outputs_of(model, padded), outputs_of(model, others)
    for one, other in zip(first, same, strict=True):
        # of an empty segment nothing is asked
        assert torch.equal(one.loss, other.loss) and torch.equal(one.memory[1], other.memory[1])
    prompt = model.initial_prompt(1).repeat(1, 2, 1)
    sequence = torch.cat([model.sink(1), prompt, model.backbone.embed(ids[None]), model.write_prompt(1)], dim=1)
    hidden = model.backbone.decode(sequence)[0]
    torch.testing.assert_close(first[0].memory[0], hidden[-2:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        first[0].logits[0, : len(ids)], model.backbone.logits(hidden[5:-2]), rtol=1e-5, atol=1e-6
    )


@each_kind
def test_bf16(kind):
    """Losses and gradients are finite, and memories keep the type of the embeddings."""
    backbone = build_model(CONFIGS[kind], dtype=torch.bfloat16)
    model = HMT(backbone, make_settings(interface="adapted")).bfloat16()
    state = MemoryState.empty(1, 1, backbone.dim, 2, dtype=torch.bfloat16, device=torch.device("cpu"))
    totals, after = segment_wise(model, make_window([[document(3 * L)]]), state)
    assert after.memories.dtype == torch.bfloat16 and float(totals.loss) > 0
    assert all(gradient.isfinite().all() for gradient in take_gradients(model).values())


def test_rwkv_keeps_its_weights():
    """Going to evaluation and back changes no weight, and both give the same hidden states."""
    backbone = make_backbone(CONFIGS["rwkv"])
    before = {name: weight.clone() for name, weight in backbone.named_parameters()}
    embeddings = backbone.embed(document(L)[None])
    evaluated, trained = backbone.eval().decode(embeddings), backbone.train().decode(embeddings)
    torch.testing.assert_close(evaluated, trained, rtol=1e-12, atol=0)
    assert all(torch.equal(before[name], weight) for name, weight in backbone.named_parameters())
