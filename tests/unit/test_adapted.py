"""The adapted interface: its equations written out for one document, causality, and the recall's own loss."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import VOCABULARY, L, distance, document, empty_state, make_model, make_window, segment_wise, take_gradients
from torch import Tensor
from torch.nn.functional import cross_entropy

from hmt_ds.memory import HMT, Window, read_window


def spread(model: HMT) -> HMT:
    """Give scale and shift values that are not trivial."""
    for parameter in model.memory_embedding.parameters():
        torch.nn.init.normal_(parameter)
    return model


def written_out(model: HMT, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The summed loss and all M_n ``[m, d]``, from the model's weights and no code of ours."""
    weights, size, llama = dict(model.named_parameters()), model.settings, model.backbone.model
    m, k = size.memory_tokens, size.sensory_tokens
    sink, nothing, write = (weights[f"{name}.embeddings.weight"] for name in ("sink", "initial_prompt", "write_prompt"))
    x, loss, memories = llama.model.embed_tokens(ids), torch.zeros(()), []
    for start in range(0, len(ids), L):
        normal = [M / (M.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() for M in memories[-size.cached_memories :]]
        newest = normal[-size.last_memories :]
        absent = size.last_memories - len(newest)
        read, filled = [0 * nothing] * absent + newest, [False] * absent + [True] * len(newest)
        if size.mode == "hmt":
            gains: list[Tensor] = []
            if normal:
                asked = torch.cat([sink, x[start - k : start], weights["summary_prompt.embeddings.weight"]])
                asked = llama.model(inputs_embeds=asked[None]).last_hidden_state[0, -m:]
                asked = asked / (asked.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
                query = asked.mean(dim=0) @ weights["recall.query.weight"].T
                keys = torch.stack([M.mean(dim=0) for M in normal]) @ weights["recall.key.weight"].T
                handicap = weights["recall.recency"] * torch.arange(len(normal), 0, -1).log()
                share = torch.softmax(keys @ query / math.sqrt(size.recall_dim) - handicap, dim=0)
                best = share.argsort(descending=True)[: size.recalled_memories].sort().values
                gains = [normal[i] * (share[i] / share[i].detach()) for i in best.tolist()]
            empty = size.recalled_memories - len(gains)
            read = [0 * nothing] * empty + gains + read
            filled = [False] * empty + [True] * len(gains) + filled
        scale, shift = weights["memory_embedding.scale"], weights["memory_embedding.shift"]
        prompt = [scale * M + shift if full else nothing for M, full in zip(read, filled, strict=True)]
        segment, sensory = x[start : start + L], x[max(start - k, 0) : start]
        sequence = torch.cat([sink, *prompt, sensory, segment, write])
        hidden = llama.model(inputs_embeds=sequence[None]).last_hidden_state[0]
        memories.append(hidden[-m:])
        targets, first = ids[start + 1 : start + L + 1], 1 + m * len(prompt) + len(sensory)
        loss = loss + cross_entropy(llama.lm_head(hidden[first : first + len(targets)]), targets, reduction="sum")
    return loss, memories


@pytest.mark.parametrize("memory_tokens", [1, 2])
@pytest.mark.parametrize(
    ("mode", "recalled", "last"), [("hmt", 1, 1), ("hmt", 2, 1), ("hmt", 1, 2), ("rmt", 1, 1), ("rmt", 1, 3)]
)
@pytest.mark.parametrize("tokens", [6 * L, 4 * L + 2, L - 2])
def test_equations(mode, recalled, last, memory_tokens, tokens):
    """Six segments overflow the cache of three; the last may be short, and the only one too."""
    sizes = {"recalled_memories": recalled, "last_memories": last, "memory_tokens": memory_tokens}
    changes = {"mode": mode} | sizes
    model, ids = spread(make_model(interface="adapted", **changes)), document(tokens)
    loss, memories = written_out(model, ids)
    loss.backward()
    expected = take_gradients(model)
    outputs = [output for output, _ in read_window(model, model.settings, make_window([[ids]]), empty_state(model, 1))]
    total = torch.stack([output.loss.sum() for output in outputs]).sum()
    total.backward()
    # a Llama's norms are float32, and so is the softmax over memories
    torch.testing.assert_close(total, loss, rtol=1e-6, atol=0)
    for output, memory in zip(outputs, memories, strict=True):
        torch.testing.assert_close(output.memory[0], memory, rtol=1e-5, atol=1e-5)
    assert distance(take_gradients(model), expected) < 5e-5


def logits_of(model: HMT, ids: Tensor) -> Tensor:
    """``[tokens, v]``."""
    window, state = make_window([[ids]]), empty_state(model, 1)
    with torch.no_grad():
        outputs = [o for o, _ in read_window(model, model.settings, window, state, with_logits=True)]
    return torch.cat([output.logits[0] for output in outputs])[: len(ids)]


@pytest.mark.parametrize(("changes", "causal"), [
    ({"interface": "adapted"}, True),
    ({"interface": "adapted", "mode": "rmt"}, True),
    ({"interface": "paper", "mode": "rmt"}, True),
    ({"interface": "paper", "mode": "hmt"}, False),
])  # fmt: skip
def test_a_token_changes_no_earlier_logit(changes, causal):
    """The paper's query reads the first half of a segment before that half is predicted; the adapted one does not."""
    model, ids = make_model(**changes), document(5 * L)
    before, moved = logits_of(model, ids), []
    for position in range(len(ids)):
        other = ids.clone()
        other[position] = 1 + ids[position] % (VOCABULARY - 1)
        moved.append(not torch.equal(logits_of(model, other)[:position], before[:position]))
    assert any(moved) != causal


def asked_window() -> Window:
    """Rows of different length and age, with targets of all kinds: none, the last memory, older and forgotten ones."""
    window = make_window([[document(7 * L)], [document(2 * L), document(5 * L - 1)], [document(4 * L)]])
    targets = torch.tensor([[0, 1, 2, 3, 2, 9, 3], [0, 0, 0, 2, 2, 3, 0], [0, 0, 2, 2, 0, 0, 0]])
    return replace(window, targets=targets)


@pytest.mark.parametrize("memory_tokens", [1, 2])
def test_gradients_of_the_recall_loss(memory_tokens):
    """Segment by segment as in one graph, with other rows' memories as negatives, and the loss itself by hand."""
    changes = {"recall_loss": 0.3, "memory_tokens": memory_tokens, "cached_memories": 4}
    model, window = spread(make_model(interface="adapted", **changes)), asked_window()
    outputs = [o for o, _ in read_window(model, model.settings, window, empty_state(model, 3))]
    own, recall = (
        torch.stack(list(column)).sum() for column in zip(*((o.loss, o.recall_loss) for o in outputs), strict=True)
    )
    (own + 0.3 * recall).backward()
    expected = take_gradients(model)
    totals, _ = segment_wise(model, window, empty_state(model, 3), recall_weight=0.3)
    torch.testing.assert_close(totals.recall_loss, recall.detach(), rtol=1e-6, atol=0)
    assert distance(take_gradients(model), expected) < 2e-6
    assert [[int(x > 0) for x in o.recall_loss.detach()] for o in outputs] == [
        [0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0],
    ]  # fmt: skip


def test_the_recall_loss_counts_the_memories_of_all_rows():
    """Cross-entropy by hand, for one segment: three rows, of which two have memories and are asked for one."""
    model, m = make_model(interface="adapted", recall_loss=1.0, memory_tokens=2), 2
    memories, valid = (
        torch.randn(3, 4, m, 16).double(),
        torch.tensor([[True] * 4, [False, False, True, True], [False] * 4]),
    )
    query = torch.randn(3, m, 16).double()
    found = model.recall(query, memories, valid, torch.tensor([3, 2, 0]))
    v = (query / (query.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()).mean(dim=1)
    queries, keys = v @ model.recall.query.weight.T, memories.mean(dim=2) @ model.recall.key.weight.T
    pool = torch.cat([keys[0], keys[1, 2:]])  # what is valid
    handicap = model.recall.recency * torch.tensor([4, 3, 2, 1, 2, 1]).log()
    scores = queries[:2] @ pool.T / math.sqrt(8) - handicap
    expected = cross_entropy(scores, torch.tensor([1, 4]), reduction="none")
    torch.testing.assert_close(found.loss, torch.cat([expected, torch.zeros(1)]).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        found.share[0],
        torch.softmax((queries[0] @ keys[0].T) / math.sqrt(8) - handicap[:4], 0).float(),
        rtol=1e-5,
        atol=1e-6,
    )
    assert torch.equal(found.share[2], torch.zeros(4))


def test_of_two_memories_that_answer_alike_the_newer_one_is_chosen():
    """Content alone cannot tell which of two facts about the same thing holds."""
    model, m = make_model(interface="adapted", memory_tokens=2), 2
    memories = torch.randn(1, 5, m, 16).double()
    memories[:, 3] = memories[:, 1]
    share = model.recall(torch.ones(1, m, 16).double(), memories, torch.ones(1, 5, dtype=torch.bool), None).share[0]
    torch.testing.assert_close(share[3] / share[1], torch.tensor(4 / 2), rtol=1e-5, atol=0)
