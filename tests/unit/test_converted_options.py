"""Options of a converted folder's model, at loading and in forward: plain Llama's meaning, or refused in one line."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import LLAMA, VOCABULARY
from tiny_folder import HMTForCausalLM, load_tiny, write_tiny
from transformers import AutoModelForCausalLM, LlamaForCausalLM

TOKENS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a converted folder."""
    return write_tiny(tmp_path_factory.mktemp("folder") / "hf")


@pytest.fixture(scope="module")
def model(folder) -> HMTForCausalLM:
    """Load it."""
    return load_tiny(folder)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """A plain Llama of the same sizes: what transformers does."""
    config = AutoModelForCausalLM.from_config
    return config(LlamaForCausalLM.config_class(**LLAMA), dtype=torch.float64).eval()


def make_ids() -> torch.Tensor:
    """Two documents of three segments and a third."""
    return torch.randint(3, VOCABULARY, (2, TOKENS))


SELECTIONS: dict[str, Any] = {
    "all": 0,
    "one": 1,
    "across a border": 9,
    "the whole length": TOKENS,
    "beyond the length": TOKENS + 5,
    "all but the first two": -2,
    "positions": torch.tensor([0, 7, 19, -1]),
    "positions of each row": torch.tensor([[0, 7], [3, 19]]),
    "mask": torch.arange(2 * TOKENS).view(2, TOKENS) % 3 == 0,
}


@pytest.mark.parametrize("what", SELECTIONS)
def test_logits_to_keep(what, model, llama):
    """The logits at the positions that transformers selects from all of them."""
    ids = make_ids()
    for one in (llama, model):
        places = torch.arange(2 * TOKENS).view(2, TOKENS, 1)
        wanted = SELECTIONS[what]
        if isinstance(wanted, int):
            chosen = places[:, slice(-wanted, None)]
        elif wanted.dim() == 1:
            chosen = places[:, wanted]
        else:
            chosen = places[wanted] if wanted.dtype == torch.bool else places.take_along_dim(wanted[..., None], 1)
        expected = one(ids).logits.flatten(0, 1)[chosen.flatten()].view(*chosen.shape[:-1], VOCABULARY)
        torch.testing.assert_close(one(ids, logits_to_keep=wanted).logits, expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output_hidden_states": True}, "does not take output_hidden_states: it returns the loss and the logits"),
        ({"output_attentions": True}, "does not take output_attentions"),
        ({"past_key_values": object()}, "past_key_values is a object, which cannot hold a memory"),
        ({"labelz": torch.zeros(2, TOKENS)}, "does not take labelz"),
        ({"inputs_embeds": torch.zeros(2, 3, 16)}, "inputs_embeds is not supported"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(2, 3, 16)}, "inputs_embeds is not supported"),
        ({"input_ids": None}, "input_ids must be token ids of the shape"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "with at least one token"),
        ({"attention_mask": torch.ones(2, 1, TOKENS, TOKENS)}, r"attention_mask must have the shape of input_ids"),
        ({"position_ids": torch.arange(TOKENS).flip(0)[None]}, "position_ids must be the default ones"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_what_is_refused(options, said, model):
    with pytest.raises(ValueError, match=said) as error:
        model(**{"input_ids": make_ids()} | options)
    assert "\n" not in str(error.value)


def test_configured_outputs_are_refused(folder):
    model = load_tiny(folder, output_hidden_states=True)
    with pytest.raises(ValueError, match="does not take output_hidden_states"):
        model(make_ids())


def test_what_has_no_effect_is_accepted(model, llama):
    """Options that transformers, peft and collators always pass are accepted; ``return_dict=False`` gives a tuple."""
    ids = make_ids()
    mask = torch.ones_like(ids)
    harmless: list[dict[str, Any]] = [
        {"use_cache": True, "output_attentions": False, "output_hidden_states": None, "inputs_embeds": None},
        {"attention_mask": mask, "position_ids": torch.arange(TOKENS)[None], "past_key_values": None},
        {"attention_mask": mask, "position_ids": mask.cumsum(1) - 1, "token_type_ids": mask * 0, "use_cache": False},
    ]
    for one in (llama, model):
        expected = one(ids).logits
        for options in harmless:
            torch.testing.assert_close(one(ids, **options).logits, expected)
    loss, logits = model(ids, labels=ids, return_dict=False)
    assert loss == model(ids, labels=ids)["loss"] and torch.equal(logits, expected)
    mask[0, :5] = 0
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)  # as transformers makes them for left padding
    given = model(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(given, model(ids, attention_mask=mask).logits)


def test_peft_around_it(model):
    """LoRA passes its own options; fresh adapters change nothing."""
    ids = make_ids()
    expected = model(ids, labels=ids)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    found = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    adapted.unload()


def test_the_attention_implementation_reaches_the_backbone(folder, model):
    assert model.hmt.backbone.model.config._attn_implementation == "sdpa"
    ids = make_ids()
    for how in ("eager", "sdpa"):
        loaded = load_tiny(folder, attn_implementation=how)
        config = loaded.hmt.backbone.model.config
        assert loaded.config._attn_implementation == config._attn_implementation == how
        assert config is loaded.hmt.backbone.model.model.layers[0].self_attn.config
        # eager attention has its softmax in float32
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-5)
        loaded.set_attn_implementation("eager")
        assert config._attn_implementation == "eager"
    with pytest.raises(ValueError, match='attn_implementation="none_such"` is not supported'):
        load_tiny(folder, attn_implementation="none_such")
