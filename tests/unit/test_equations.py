"""HMT against the equations of its paper (arXiv 2405.06067, section 3), written out for one document."""

import math

import pytest
import torch
from tiny import L, distance, document, empty_state, make_model, make_window, take_gradients
from torch import Tensor
from torch.nn.functional import cross_entropy

from hmt_ds.memory import HMT, read_window


def paper(model: HMT, ids: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The summed loss, and all P_n and M_n ``[m, d]``, from the model's weights and no code of ours."""
    weights, size, llama = dict(model.named_parameters()), model.settings, model.backbone.model
    m, k, j = size.memory_tokens, size.sensory_tokens, round(L * size.summary_fraction)
    x, loss, prompts, memories = llama.model.embed_tokens(ids), torch.zeros(()), [], []

    def read(*parts: Tensor) -> Tensor:
        return llama.model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state[0]

    for start in range(0, len(ids), L):
        segment, sensory = x[start : start + L], x[max(start - k, 0) : start]
        if size.mode == "backbone":
            prompt = x[:0]
        elif not memories:
            prompt = weights["initial_prompt.embeddings.weight"]
        elif size.mode == "rmt":
            prompt = memories[-1]
        else:
            T = weights["summary_prompt.embeddings.weight"]
            q, M = read(T, segment[:j], T)[-m:], torch.cat(memories[-size.cached_memories :])
            scores = (q @ weights["recall.query.weight"].T) @ (M @ weights["recall.key.weight"].T).T
            prompt = torch.softmax(scores / math.sqrt(size.recall_dim), dim=-1) @ M
        hidden = read(prompt, sensory, segment, prompt)
        prompts, memories = [*prompts, prompt], [*memories, hidden[len(hidden) - len(prompt) :]]
        targets, first = ids[start + 1 : start + L + 1], len(prompt) + len(sensory)
        loss = loss + cross_entropy(llama.lm_head(hidden[first : first + len(targets)]), targets, reduction="sum")
    return loss, prompts, memories


@pytest.mark.parametrize(("mode", "memory_tokens"), [("hmt", 1), ("hmt", 2), ("rmt", 1), ("rmt", 2), ("backbone", 1)])
@pytest.mark.parametrize("tokens", [5 * L, 4 * L + 2, L - 2])
def test_paper(mode, memory_tokens, tokens):
    """Five segments overflow the cache of three; the last may be short, and the only one too."""
    model, ids = make_model(mode=mode, memory_tokens=memory_tokens), document(tokens)
    loss, prompts, memories = paper(model, ids)
    loss.backward()
    expected = take_gradients(model)

    outputs = [output for output, _ in read_window(model, model.settings, make_window([[ids]]), empty_state(model, 1))]
    total = torch.stack([output.loss.sum() for output in outputs]).sum()
    total.backward()
    # the recall's softmax is float32, and so are a Llama's norms
    torch.testing.assert_close(total, loss, rtol=1e-6, atol=0)
    for output, prompt, memory in zip(outputs, prompts, memories, strict=True):
        torch.testing.assert_close(output.prompt[0], prompt, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(output.memory[0], memory, rtol=1e-6, atol=1e-6)
    assert distance(take_gradients(model), expected) < 2e-6


def test_another_mode_for_comparison():
    """Memory off, as evaluation asks for it, is the backbone mode with the same weights."""
    model, ids = make_model(mode="hmt"), document(3 * L)
    state = empty_state(model, 1)
    off = sum(o.loss.sum() for o, _ in read_window(model, model.settings, make_window([[ids]]), state, mode="backbone"))
    plain = make_model(mode="backbone")
    plain.backbone.load_state_dict(model.backbone.state_dict())
    torch.testing.assert_close(off, paper(plain, ids)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("changes", [{}, {"interface": "adapted"}], ids=["paper", "adapted"])
def test_summaries_in_a_batch(changes):
    """The queries of several segments, read at a time, are those of each alone, rows outside and segments inside."""
    model, window = make_model(memory_tokens=2, **changes), make_window([[document(4 * L)], [document(3 * L - 4)]])
    before = torch.zeros(2, 2, dtype=torch.long)
    together = model(window.summary(1, 4, before, model.settings)).unflatten(0, (2, 3))
    alone = [model(window.summary(n, n + 1, before, model.settings)) for n in (1, 2, 3)]
    torch.testing.assert_close(together, torch.stack(alone, dim=1), rtol=1e-6, atol=1e-6)


def test_without_loss(monkeypatch):
    """Zeros, and no logits are computed for them; all else is as it was."""
    model, window, state = make_model(), make_window([[document(L)], [document(2)]]), empty_state(make_model(), 2)
    segment = window.segment(0, state.tail, model.settings)
    with_loss = model(segment, state.memories, state.valid)
    monkeypatch.setattr(type(model.backbone), "logits", None)
    without = model(segment, state.memories, state.valid, with_loss=False)
    assert with_loss.loss.all() and without.loss.tolist() == [0, 0]
    assert torch.equal(without.memory, with_loss.memory) and torch.equal(without.prompt, with_loss.prompt)


@pytest.mark.parametrize("interface", ["paper", "adapted"])
@pytest.mark.parametrize("mode", ["hmt", "rmt", "backbone"])
def test_every_weight_takes_part_in_every_reading(mode, interface):
    """A weight without a gradient gets zero: DeepSpeed mishandles weights that miss a backward pass."""
    model, window = make_model(mode=mode, interface=interface), make_window([[document(2 * L)]])
    state = empty_state(model, 1)
    if mode == "hmt":
        model(window.summary(0, 1, torch.zeros(1, 2).long(), model.settings)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
    memories = torch.randn(1, 1, 1, model.backbone.dim, dtype=torch.float64)
    for n, cached in enumerate([memories[:, :0], memories]):
        # a query that was read ahead comes without its graph
        query = memories[:, 0] if n and mode == "hmt" else None
        segment, valid = window.segment(n, state.tail, model.settings), torch.ones(cached.shape[:2], dtype=torch.bool)
        output = model(segment, cached, valid, query=query)
        (output.loss.sum() + output.memory.sum()).backward()
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()


def test_a_summary_needs_its_prompt_and_the_layers_alone():
    """The weights that take part for DeepSpeed's sake get zeros."""
    model, window = make_model(), make_window([[document(L)]])
    model(window.summary(0, 1, torch.zeros(1, 2).long(), model.settings)).sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad.count_nonzero() == 0}
    assert idle == {
        "backbone.model.lm_head.weight",
        "initial_prompt.embeddings.weight",
        "recall.query.weight",
        "recall.key.weight",
    }


def test_a_summary_is_finite_in_float16():
    """Weights that take part with weight zero must be finite themselves: the sum of many logits is not, and 0 * inf.

    37 logits of 2,000 here; 32,000 logits of 3 in a language model.
    """
    model, window = make_model(), make_window([[document(L)]])
    part = window.summary(0, 1, torch.zeros(1, 2).long(), model.settings)
    hidden, _ = model.read(part, model.summary_prompt(1))
    first = hidden[0, 0].detach()
    model.backbone.model.lm_head.weight.data[:] = 2000 * first / first.norm() ** 2
    assert model.half()(part).isfinite().all()
