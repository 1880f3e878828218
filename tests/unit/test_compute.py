"""Checkpointed and compiled layers give the same gradients, and keep the activations that they should."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_backbones import CONFIGS
from tiny import GPT2, LLAMA, L, distance, document, empty_state, make_model, make_window, segment_wise, take_gradients
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hmt_ds.backbones import FAMILIES, BackboneError, build_model
from hmt_ds.backbones.compute import EXPENSIVE, checkpoint_layers, compile_layers, decoder_layers, liger_knows
from hmt_ds.memory import HMT
from hmt_ds.parallel.layer_groups import group_layers

LAYERS = 3
IDS = torch.arange(1, 13)[None]
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}


class Count(TorchDispatchMode):
    """Counts how often each operation ran."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.calls[operation] += 1
        return operation(*arguments, **(options or {}))


def loss_of(hidden: Tensor) -> Tensor:
    """Something that depends on all hidden states, and not on their length, which norms fix."""
    return (hidden * torch.arange(hidden.numel()).view_as(hidden).cos()).sum()


def counted(model: HMT) -> tuple[dict[str, Tensor], Counter[Any], Counter[Any]]:
    """Gradients of a reading by the backbone, and the operations of both directions."""
    ahead, back = Count(), Count()
    with ahead:
        loss = loss_of(model.backbone.decode(model.backbone.embed(IDS), None))
    with back:
        loss.backward()
    return take_gradients(model), ahead.calls, back.calls


def products(calls: Counter[Any]) -> int:
    return sum(calls[operation] for operation in PRODUCTS)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_layers_of(config):
    """The decoder's list, whatever it is called, has all its layers, and each is called in a reading."""
    backbone = make_model(config).backbone
    module, name = decoder_layers(backbone)
    layers, calls = getattr(module, name), []
    assert isinstance(layers, nn.ModuleList) and len(layers) == backbone.config.num_hidden_layers
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, arguments: calls.append(layer))
    backbone.decode(backbone.embed(IDS), None)
    assert calls == list(layers)


def test_the_longest_list_are_the_layers():
    """A decoder may have others: of heads, of experts."""
    decoder = nn.Module()
    decoder.heads, decoder.blocks, decoder.rest = (nn.ModuleList(nn.Linear(1, 1) for _ in range(n)) for n in (1, 3, 2))
    backbone = SimpleNamespace(model=SimpleNamespace(base_model=decoder))
    assert decoder_layers(backbone) == (decoder, "blocks")  # type: ignore[arg-type]


def test_every_family_is_tested():
    assert {config["model_type"] for config in CONFIGS.values()} >= FAMILIES.keys()


def test_no_layers_are_told_in_one_line():
    model = SimpleNamespace(base_model=nn.Linear(2, 2), config=SimpleNamespace(model_type="odd"))
    with pytest.raises(BackboneError, match=r"odd: the model has no nn\.ModuleList of decoder layers") as caught:
        decoder_layers(SimpleNamespace(model=model))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [LLAMA, CONFIGS["qwen3"]], ids=["llama", "qwen3"])
@pytest.mark.parametrize("per_leaf", [None, 2])
def test_checkpoints_compute_again_what_they_say(config, per_leaf):
    """Selective ones keep matrix products and attention, and compute the rest again; the others compute all again."""
    found = {}
    for way in ("plain", "selective", "layer"):
        model = make_model(config | {"num_hidden_layers": LAYERS}).train()
        if way != "plain":
            checkpoint_layers(model.backbone, selective=way == "selective")
        if per_leaf:
            group_layers(model.backbone, per_leaf)
        found[way] = counted(model)
    gradients, ahead, back = found["plain"]
    silu = torch.ops.aten.silu.default
    assert products(ahead) and ahead[silu] == LAYERS and back[silu] == 0
    for way, (found_gradients, found_ahead, found_back) in found.items():
        assert distance(found_gradients, gradients) < 1e-12, way
        assert products(found_ahead) == products(ahead)
        assert found_back[silu] == (0 if way == "plain" else LAYERS), way
        if way != "layer":
            assert products(found_back) == products(back), way
    # all products but the last one of a layer, whose result nobody needs
    again = products(found["layer"][2]) - products(back)
    assert again == products(ahead) - LAYERS
    attention = [op for op in EXPENSIVE - PRODUCTS if ahead[op]]
    assert len(attention) == 1 and found["selective"][2][attention[0]] == 0 < found["layer"][2][attention[0]]


def test_nothing_is_checkpointed_in_evaluation():
    """There is no backward pass, so it would be for nothing."""
    model = make_model(LLAMA)
    checkpoint_layers(model.backbone, selective=False)
    assert counted(model)[2][torch.ops.aten.silu.default] == 0


@pytest.mark.parametrize("selective", [False, True])
def test_dropout_draws_the_same_when_it_is_computed_again(selective):
    """With activation checkpointing, gradients of a window equal those without it, from the same seed."""
    window = make_window([[document(3 * L)], [document(2 * L - 1)]])
    gpt2 = GPT2 | {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    found = []
    for checkpoints in (False, True):
        model = make_model(gpt2).train()
        if checkpoints:
            checkpoint_layers(model.backbone, selective=selective)
        torch.manual_seed(5)
        segment_wise(model, window, empty_state(model, 2))
        found.append(take_gradients(model))
    assert distance(*found) < 1e-9


def test_liger_is_absent():
    """No test here needs liger-kernel; recipes that ask for it are refused in test_bad_input."""
    try:
        import liger_kernel  # noqa: F401
    except ImportError:
        assert not any(liger_knows(family) for family in FAMILIES)
    else:
        assert liger_knows("llama") and not liger_knows("no_such_model")


def test_compiled_layers_give_the_same_gradients():
    """In float32, in training; the layers share one code, compiled once, beside the norm's. (Nine seconds on a CPU.)"""
    found = []
    for compiled in (False, True):
        backbone = build_model(LLAMA | {"num_hidden_layers": LAYERS}, dtype=torch.float32, seed=1).train()
        if compiled:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            compile_layers(backbone)
        with torch._dynamo.config.patch(error_on_recompile=True):
            loss_of(backbone.decode(backbone.embed(IDS), None)).backward()
        found.append({name: weight.grad for name, weight in backbone.named_parameters() if weight.grad is not None})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert distance(found[1], found[0]) < 1e-4
