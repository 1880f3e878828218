"""ZeRO-3's groups of layers change where hooks are, and nothing else of the model."""

from typing import Any

import pytest
import torch
from test_backbones import CONFIGS
from tiny import LLAMA, VOCABULARY, distance, make_model, take_gradients
from torch import Tensor

from hmt_ds.backbones import FAMILIES, CausalLM
from hmt_ds.backbones.compute import decoder_layers
from hmt_ds.memory import HMT
from hmt_ds.parallel.layer_groups import LayerGroup, LayerGroups, group_layers

LAYERS = 4
IDS = torch.arange(1, 13)[None] * 5 % VOCABULARY  # longer than the sliding windows
FOUR = {
    kind: config | {"num_hidden_layers": LAYERS} for kind, config in CONFIGS.items() if kind not in ("falcon", "rwkv")
}
FOUR["gpt2"] |= {"n_layer": LAYERS}
FOUR["smollm3"] |= {"no_rope_layers": [1, 0, 1, 0]}
FOUR["gemma3_text"] |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
FOUR["qwen2, windows"] = FOUR["qwen2"] | {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 3}
FOUR["qwen3, windows"] = FOUR["qwen3"] | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 3}
each_kind = pytest.mark.parametrize("config", FOUR.values(), ids=FOUR.keys())


def groups_of(backbone: CausalLM) -> LayerGroups:
    """The decoder's list, once it is grouped."""
    module, name = decoder_layers(backbone)
    return getattr(module, name)


def read(model: HMT) -> tuple[Tensor, dict[str, Tensor]]:
    """Last hidden states, and the gradients of a loss that depends on all of them."""
    hidden = model.backbone.decode(model.backbone.embed(IDS), None)
    (hidden * torch.arange(hidden.numel()).view_as(hidden).cos()).sum().backward()
    return hidden.detach(), take_gradients(model)


def test_every_family_is_tested():
    assert {config["model_type"] for config in FOUR.values()} >= FAMILIES.keys()


@each_kind
def test_names_stay(config):
    """Checkpoints, optimizer groups and adapters go by names; their order is that of DeepSpeed's flat buffers."""
    model = make_model(config)
    before = [name for name, _ in model.named_parameters()], list(model.state_dict())
    weights = dict(model.named_parameters())
    group_layers(model.backbone, 2)
    assert ([name for name, _ in model.named_parameters()], list(model.state_dict())) == before
    assert all(weights[name] is weight for name, weight in model.named_parameters())
    other = make_model(config)
    assert not model.load_state_dict(other.state_dict()).missing_keys
    assert not other.load_state_dict(model.state_dict()).unexpected_keys


@each_kind
@pytest.mark.parametrize("group_size", [1, 2, 3, LAYERS])
def test_same_output_and_gradients(config, group_size):
    """Also with a smaller last group, and in a second forward pass, after which nothing of the first remains."""
    model = make_model(config)
    expected, gradients = read(model)
    group_layers(model.backbone, group_size)
    for _ in range(2):
        found, found_gradients = read(model)
        assert torch.equal(found, expected)
        assert distance(found_gradients, gradients) < 1e-12


@pytest.mark.parametrize(("group_size", "sizes"), [(1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (4, [4]), (9, [4])])
def test_children_are_groups(group_size, sizes):
    """DeepSpeed walks the tree of modules by ``children``, and puts its hooks on groups, which are marked as leaves."""
    model = make_model(FOUR["llama"])
    layers = list(groups_of(model.backbone))
    group_layers(model.backbone, group_size)
    groups = list(groups_of(model.backbone).children())
    assert all(isinstance(group, LayerGroup) and group._z3_leaf for group in groups)
    assert [len(group.layers) for group in groups] == sizes
    assert [layer for group in groups for layer in group.layers] == layers
    assert {module for module in model.modules() if isinstance(module, LayerGroup)} == set(groups)


def test_modes_and_types_reach_the_layers():
    """torch goes by children too when it changes a whole model."""
    model = make_model(FOUR["llama"])
    group_layers(model.backbone, 3)
    model.train()
    assert all(module.training for module in model.modules())
    model.to(torch.bfloat16).eval()
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert not any(module.training for module in model.modules())


def arguments_of_layers(model: HMT) -> list[list[Tensor]]:
    """The tensor arguments of each layer besides the hidden states."""
    found: list[list[Tensor]] = []

    def note(layer: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [*positional[1:], *(named[key] for key in sorted(named))]
        flat = [one for value in given for one in (value if isinstance(value, tuple) else (value,))]
        found.append([one for one in flat if isinstance(one, Tensor)])

    module, name = decoder_layers(model.backbone)
    layers = torch.nn.ModuleList.__iter__(getattr(module, name))
    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    read(model)
    for handle in handles:
        handle.remove()
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen2, windows", "qwen3, windows", "gemma2"])
def test_each_layer_gets_its_own_arguments(kind):
    """Masks, and for gemma3 rotary embeddings too, differ between the layers of a run."""
    model = make_model(FOUR[kind])
    expected = arguments_of_layers(model)
    assert len(expected) == LAYERS
    assert not all(same(one, expected[0]) for one in expected), "all alike: this would test nothing"
    group_layers(model.backbone, LAYERS)
    found = arguments_of_layers(model)
    assert len(found) == LAYERS and all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_a_part_of_the_list_cannot_be_called():
    """A run is called whole or not at all; who asks for less would get wrong results in silence."""
    model = make_model(LLAMA | {"num_hidden_layers": LAYERS})
    group_layers(model.backbone, 2)
    layers = groups_of(model.backbone)
    assert [call.layer for call in layers[:LAYERS]] == [layers[n] for n in range(LAYERS)]
    with pytest.raises(AssertionError, match="whole"):
        layers[:2]
