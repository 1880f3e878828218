"""Every family in families.py, and some other models, as tiny random models of two layers."""

from contextlib import nullcontext

import pytest
import torch
from tiny import GPT2, LLAMA, L, document, empty_state, make_model, make_settings, make_window, one_graph
from torch import nn

from hmt_ds.backbones import (
    FAMILIES,
    BackboneError,
    CausalLM,
    LoraSettings,
    build_model,
    check_adapters,
    check_backbone,
    family_of,
    read_config,
    select_trainable,
)
from hmt_ds.memory import HMT, read_window
from hmt_ds.parallel.build_hmt import initialise_prompts

# sliding windows and caps are small enough to matter within a segment
SIZES = {name: value for name, value in LLAMA.items() if name != "model_type"} | {"pad_token_id": 0}
OPT = SIZES | {"ffn_dim": 24, "max_position_embeddings": 32, "init_std": 0.3}
GEMMA = SIZES | {"head_dim": 4, "sliding_window": 3, "final_logit_softcapping": 2.0}
KINDS = {
    "llama": LLAMA,
    "llama, tied": LLAMA | {"tie_word_embeddings": True},
    "mistral": SIZES | {"sliding_window": 3},
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 4},
    "gemma2": GEMMA | {"query_pre_attn_scalar": 4},
    "gemma3_text": GEMMA | {"query_pre_attn_scalar": 4},
    "phi3": SIZES,
    "smollm3": SIZES | {"no_rope_layers": [1, 0]},
    "opt": OPT,
    "opt, projected": OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False},
    "gpt2": GPT2,
    "gpt_neox": SIZES,
    # models without a row in the table
    "granite": SIZES | {"embedding_multiplier": 3.0, "attention_multiplier": 0.4},
    "stablelm": SIZES,
    "falcon": SIZES,
    # recurrent models, which see pads in front of a token
    "rwkv": SIZES | {"context_length": 32, "rescale_every": 1},
    "mamba": SIZES | {"state_size": 4, "time_step_min": 0.1, "time_step_max": 1.0},
}
OTHERS = {"granite", "stablelm", "falcon", "rwkv", "mamba"}
MEMORY = {
    f"{name}.weight"
    for name in ("initial_prompt.embeddings", "summary_prompt.embeddings", "recall.query", "recall.key")
}
CONFIGS = {kind: values | {"model_type": kind.split(",")[0]} for kind, values in KINDS.items()}
each_kind = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make_backbone(config: dict) -> CausalLM:
    return make_model(config).backbone


def test_every_row_is_tested():
    tested = {config["model_type"] for config in CONFIGS.values()}
    assert tested - FAMILIES.keys() == OTHERS and tested >= FAMILIES.keys()


@each_kind
def test_logits_are_the_models_own(config):
    """Without memory, embed, decode and logits give what the model gives for the ids."""
    model = make_model(config, mode="backbone")
    ids = document(L)
    with torch.no_grad():
        ((output, _),) = read_window(
            model, model.settings, make_window([[ids]]), empty_state(model, 1), with_logits=True
        )
        own = model.backbone.model(input_ids=ids[None], use_cache=False).logits
    assert own.std() > 0.1, "all logits alike: this would test nothing"
    # Mamba's own logits are float32, whatever its weights are
    torch.testing.assert_close(output.logits.to(own.dtype), own, rtol=1e-6, atol=1e-6)


@each_kind
def test_gradients_reach_every_parameter(config):
    """With memory over three segments, every trained weight has a finite gradient that is not zero."""
    model = make_model(config)
    one_graph(model, make_window([[document(3 * L)]]), empty_state(model, 1))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # without rotary positions a bias of keys adds the same to all scores of a query, which the softmax ignores:
        # its gradient is zero up to rounding
        if not (name.endswith("k_proj.bias") and config["model_type"] == "opt"):
            assert parameter.grad.norm() > 1e-9, name


@each_kind
def test_check_accepts(config):
    check_backbone(read_config(config))


def test_width_is_that_of_the_embeddings():
    """OPT-350M projects its embeddings: memories have the embeddings' width, not the hidden size."""
    backbone = make_backbone(CONFIGS["opt, projected"])
    assert backbone.dim == 8 and backbone.config.hidden_size == 16
    assert backbone.decode(backbone.embed(document(L)[None])).shape == (1, L, 8)


def test_soft_cap_is_read_from_the_configuration():
    assert make_backbone(CONFIGS["gemma2"]).softcap == 2.0
    assert make_backbone(CONFIGS["gemma2"] | {"final_logit_softcapping": None}).softcap is None
    assert make_backbone(LLAMA).softcap is None


@pytest.mark.parametrize(("kind", "hard"), [("gpt2", True), ("opt", True), ("llama", False), ("falcon", False)])
def test_hard_positions(kind, hard):
    """`hard_positions` says whether a sequence longer than the configured length fails."""
    limit = {"n_positions": 8} if kind == "gpt2" else {"max_position_embeddings": 8}
    backbone = make_backbone(CONFIGS[kind] | limit)
    assert family_of(backbone.config).hard_positions == hard
    embeddings = backbone.embed(document(16)[None])
    if hard:
        with pytest.raises((IndexError, RuntimeError)):
            backbone.decode(embeddings)
    else:
        assert backbone.decode(embeddings).shape == (1, 16, 16)


def trained(backbone: CausalLM) -> set[str]:
    """Return the names of the trained weights of a model with memory around this backbone."""
    return {name for name, p in HMT(backbone, make_settings()).named_parameters() if p.requires_grad}


def test_train_whole_or_frozen():
    backbone = make_backbone(LLAMA)
    everything = {f"backbone.{name}" for name, _ in backbone.named_parameters()} | MEMORY
    select_trainable(backbone, "whole")
    assert trained(backbone) == everything
    select_trainable(backbone, "frozen")
    assert trained(backbone) == MEMORY


@pytest.mark.parametrize(("targets", "layers"), [("all-linear", 7), (["q_proj", "v_proj"], 2)])
def test_train_lora(targets, layers):
    """Every adapted layer has two matrices, and the head has none."""
    backbone, names = make_backbone(LLAMA), set(dict(make_backbone(LLAMA).named_parameters()))
    select_trainable(backbone, "lora", LoraSettings(rank=2, target_modules=targets))
    adapters = trained(backbone) - MEMORY
    assert trained(backbone) >= MEMORY and len(adapters) == 2 * 2 * layers
    assert all("lora_A" in name or "lora_B" in name for name in adapters) and not any("lm_head" in n for n in adapters)
    unchanged = {n.replace(".base_layer", "") for n, _ in backbone.named_parameters() if "lora_" not in n}
    assert unchanged == names


@pytest.mark.parametrize(
    ("targets", "dropout", "stages", "why"),
    [
        ("q_proj", 0.1, 2, None),
        ("all-linear", 0.1, 2, None),
        ("lm_head", 0.0, 1, None),
        ("embed_tokens", 0.1, 1, None),
        ("lm_head", 0.0, 2, "target_modules has lm_head, but with pipeline stages only decoder layers can"),
        ("embed_tokens", 0.0, 2, "target_modules has model.embed_tokens, but with pipeline stages"),
        ("lm_head", 0.1, 1, "dropout is 0.1, and target_modules has the output head lm_head, whose logits"),
    ],
)
def test_adapters_that_cannot_be_are_refused(targets, dropout, stages, why):
    """Adapters on embeddings or head are refused on pipeline stages, and on a head with dropout."""
    lora = LoraSettings(dropout=dropout, target_modules=targets if targets == "all-linear" else ["q_proj", targets])
    with pytest.raises(BackboneError, match=why) if why else nullcontext():
        check_adapters(read_config(LLAMA), lora, stages)


@pytest.mark.parametrize(("targets", "why"), [
    (["in_proj"], None),
    (["in_proj", "dt_proj"], "target_modules has dt_proj, whose weight mamba reads without its adapter"),
    ("all-linear", "incompatible with Mamba"),
])  # fmt: skip
def test_adapters_that_mamba_would_not_use_are_refused(targets, why):
    with pytest.raises(BackboneError, match=why) if why else nullcontext():
        check_adapters(read_config(CONFIGS["mamba"]), LoraSettings(target_modules=targets))


def test_adapters_of_experts_are_refused():
    """`all-linear` includes routers and experts, which are single parameters and are refused."""
    config = read_config(LLAMA | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2})
    with pytest.raises(BackboneError, match=r"target_modules has .*mlp.*, which is a single parameter"):
        check_adapters(config, LoraSettings())
    check_adapters(config, LoraSettings(target_modules=["q_proj", "v_proj"]))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "opt, projected"])
def test_lora_starts_from_the_model(kind):
    """Adapters add nothing at first; once they are not zero they change the logits."""
    backbone, ids = make_backbone(CONFIGS[kind]), document(L)[None]
    before = backbone.logits(backbone.decode(backbone.embed(ids)))
    select_trainable(backbone, "lora")
    assert torch.equal(backbone.logits(backbone.decode(backbone.embed(ids))), before)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert not torch.allclose(backbone.logits(backbone.decode(backbone.embed(ids))), before)


def test_prompts_begin_beside_adapted_embeddings():
    """Prompts are initialized with the spread of the embeddings, also when these have adapters."""
    model = make_model(LLAMA | {"hidden_size": 256})
    select_trainable(model.backbone, "lora", LoraSettings(rank=2, target_modules=["embed_tokens", "q_proj"]))
    initialise_prompts(model)
    for prompt in (model.initial_prompt, model.summary_prompt):
        assert float(prompt.embeddings.weight.detach().std()) == pytest.approx(LLAMA["initializer_range"], rel=0.2)


@pytest.mark.parametrize(
    ("ids", "first"),
    [
        ({"bos_token_id": 5, "eos_token_id": 6}, 5),
        ({"bos_token_id": 0, "eos_token_id": 6}, 0),
        ({"bos_token_id": None, "eos_token_id": [7, 8]}, 7),
        ({"bos_token_id": 50256, "eos_token_id": 3}, 3),  # a family's default, beyond a small vocabulary
        ({"bos_token_id": None, "eos_token_id": None}, 0),
    ],
)
def test_an_adapted_memory_begins_beside_the_embeddings(ids, first):
    """The sink is the token that begins a text; memories have half of a token's size around the mean token."""
    model = make_model(LLAMA | {"hidden_size": 256} | ids, interface="adapted", memory_tokens=4)
    weight = model.backbone.model.get_input_embeddings().weight.detach()
    initialise_prompts(model)
    sample, embedding = weight[::7].float(), model.memory_embedding
    assert torch.equal(model.sink.embeddings.weight[0].float(), weight[first].float())
    torch.testing.assert_close(embedding.shift.detach().float(), sample.mean(dim=0), rtol=1e-5, atol=1e-6)
    assert float(embedding.scale.detach().mean()) == pytest.approx(0.5 * float(sample.square().mean().sqrt()))
    for prompt, spread in ((model.initial_prompt, 0.15), (model.write_prompt, 0.7)):
        apart = prompt.embeddings.weight.detach() - sample.mean(dim=0)
        assert float(apart.std()) == pytest.approx(spread * float(sample.std()), rel=0.1)


def test_random_weights_follow_the_seed():
    one, same, other = (build_model(LLAMA, dtype=torch.float32, seed=s).model.lm_head.weight for s in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "cpmant"}, "takes no inputs_embeds"),
        ({"model_type": "t5"}, "cannot be built as a causal language model"),
        ({"model_type": "bert"}, "not causal"),  # an encoder
        ({"model_type": "cohere"}, "its logits are not its output embeddings"),  # logit_scale
        ({"model_type": "granite", "logits_scaling": 8.0}, "its logits are not its output embeddings"),
        ({"model_type": "xlm"}, "not causal"),  # an encoder, whose output embeddings give its logits
        ({"model_type": "gemma4_text"}, "inputs_embeds"),  # accepts only embeddings of its own ids
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)
def test_check_refuses_in_one_line(config, why):
    with pytest.raises(BackboneError, match=why) as caught:
        check_backbone(read_config(SIZES | config))
    assert "\n" not in str(caught.value) and config["model_type"] in str(caught.value)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (SIZES, "lacks the key model_type"),
        ({"model_type": "no_such_model"}, "no_such_model"),
        ("no/such/folder", "no such folder"),
        (LLAMA | {"num_attention_heads": 3}, "multiple"),
    ],
    ids=["no type", "unknown type", "no folder", "heads"],
)
def test_wrong_configurations_are_told_in_one_line(source, why):
    with pytest.raises(BackboneError, match=why) as caught:
        read_config(source)
    assert "\n" not in str(caught.value)
