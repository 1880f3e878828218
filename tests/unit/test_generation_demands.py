"""What transformers' own generation tests demand of a model, over a converted Llama and a converted GPT-2.

The prompts end inside a fourth segment, and what is generated crosses two boundaries. The expected values come from
transformers' loop without a cache, where every token is one forward pass over everything before it. README.md of
`hmt_ds/inference/` has the table.
"""

from threading import Thread
from typing import Any

import pytest
import torch
from tiny import GPT2, LLAMA, L, document
from tiny_folder import HMTForCausalLM, load_endless, load_tiny, write_tiny
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    SynthIDTextWatermarkingConfig,
    TextIteratorStreamer,
    WatermarkingConfig,
)
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from hmt_ds.inference.segment_cache import SegmentCache

READ, NEW = 3 * L + 2, 2 * L + 1
ALL = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """Write a converted folder."""
    backbone = {"llama": LLAMA, "gpt2": GPT2}[request.param]
    return write_tiny(tmp_path_factory.mktemp("folder") / "hf", backbone, interface="adapted", recalled_memories=2)


@pytest.fixture
def model(folder) -> HMTForCausalLM:
    """Load it; nothing ends a row."""
    return load_endless(folder)


@pytest.fixture
def ids() -> Tensor:
    """Two documents."""
    torch.manual_seed(3)
    return torch.stack([document(READ), document(READ)])


def new(model: HMTForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """The new tokens of every sequence."""
    torch.manual_seed(7)
    return model.generate(ids, **options)[:, ids.shape[1] :]


OPTIONS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": READ + NEW},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
    "other sampling": {"do_sample": True, "min_p": 0.02, "typical_p": 0.9, "epsilon_cutoff": 1e-3, "top_k": 0},
    "repetition over boundaries": {"repetition_penalty": 1.7},
    "n-grams over boundaries": {"no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3},
    "all beams": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "bad words": {"bad_words_ids": [[15], [2, 12], [12, 2]], "suppress_tokens": [3, 4, 5, 6, 7, 8, 9, 10]},
    "biases": {"sequence_bias": [[[15], 9.0], [[15, 12], 30.0]]},
    "a forced end": {"forced_eos_token_id": 13},
    "a longer and longer wish to end": {"exponential_decay_length_penalty": (2, 3.0), "eos_token_id": 36},
    "guidance": {"guidance_scale": 3.0},
    "a negative prompt": {"guidance_scale": 3.0, "negative_prompt_ids": torch.arange(2, 2 + 2 * (L + 2)).view(2, -1)},
    "a watermark": {"watermarking_config": WatermarkingConfig(bias=9.0, greenlist_ratio=0.3)},
    "a SynthID watermark": {
        "watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[10, 20, 30]),
        "do_sample": True,
    },
    "a configuration": {"generation_config": GenerationConfig(do_sample=True, max_new_tokens=NEW, pad_token_id=0)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_as_without_a_cache(name, model, ids):
    """Each option gives the tokens that it gives without a cache, for one row and for two."""
    options = {"max_new_tokens": NEW} | OPTIONS[name]
    if "max_length" in options or "generation_config" in options:
        del options["max_new_tokens"]
    for rows in (1, 2):
        if "negative_prompt_ids" in options:
            options["negative_prompt_ids"] = OPTIONS[name]["negative_prompt_ids"][:rows]
        found = new(model, ids[:rows], **options)
        assert torch.equal(found, new(model, ids[:rows], **options, use_cache=False))
        assert len(found) == rows * options.get("num_return_sequences", 1)
        assert found.shape[1] == NEW or "eos_token_id" in options
    if name not in ("max_length", "all beams"):  # the option has an effect, or the test would show nothing
        plain = new(model, ids, max_new_tokens=NEW)
        assert found.shape != plain.shape or not torch.equal(found, plain)


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "temperature": 0.7, "top_k": 10, "top_p": 0.7},
    "beams": {"num_beams": 2, "length_penalty": 2.0},
    "beam sampling": {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_returned(kind, model, ids):
    """Scores, logits, beams and the cache have transformers' types and shapes, and the values of no cache."""
    options = {"max_new_tokens": NEW, "repetition_penalty": 1.2, "bad_words_ids": [[1, 0]]} | KINDS[kind] | ALL
    beams, returned = options.get("num_beams", 1), options.get("num_return_sequences", 1)
    torch.manual_seed(0)
    output = model.generate(ids, **options)
    torch.manual_seed(0)
    expected = model.generate(ids, **options, use_cache=False)
    assert type(output) is (GenerateBeamDecoderOnlyOutput if beams > 1 else GenerateDecoderOnlyOutput)
    assert output.sequences.shape == (2 * returned, READ + NEW)
    assert torch.equal(output.sequences, expected.sequences)
    rows = 2 * (beams if beams > 1 else returned)
    for found, wanted in ((output.scores, expected.scores), (output.logits, expected.logits)):
        assert len(found) == NEW and {one.shape for one in found} == {(rows, model.config.vocab_size)}
        torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-5, atol=1e-5)
    assert not torch.equal(torch.stack(output.scores), torch.stack(output.logits))  # logits are unprocessed
    assert isinstance(output.past_key_values, SegmentCache) and expected.past_key_values is None
    assert output.past_key_values.get_seq_length() == READ + NEW - 1
    assert output.hidden_states is None and output.attentions is None
    if beams > 1:
        assert output.sequences_scores.shape == (2 * returned,) and output.beam_indices.shape == (2 * returned, NEW)
        torch.testing.assert_close(output.sequences_scores, expected.sequences_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_transition_scores(beams, model, ids):
    """compute_transition_scores gives the log-probability of each chosen token, along its beam."""
    options = {"max_new_tokens": NEW, "num_beams": beams, "length_penalty": 0.0} | ALL
    output = model.generate(ids, **{k: v for k, v in options.items() if beams > 1 or k != "length_penalty"})
    beam_indices = output.beam_indices if beams > 1 else None
    found = model.compute_transition_scores(output.sequences, output.scores, beam_indices, normalize_logits=beams == 1)
    with torch.no_grad():
        logits = model(output.sequences).logits[:, READ - 1 : -1].log_softmax(dim=-1)
    expected = logits.gather(2, output.sequences[:, READ:, None])[:, :, 0]
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [3, L - 2, L + 1])
@pytest.mark.parametrize("beams", [1, 2])
def test_going_on_in_a_second_call(first, beams, model, ids):
    """A padded batch that is continued from the cache of an earlier call gives one call's tokens and scores."""
    mask = torch.ones_like(ids)
    mask[0, :1], mask[1, :2] = 0, 0
    options: dict[str, Any] = {"pad_token_id": -1, "eos_token_id": -1} | ALL
    whole = model.generate(ids, attention_mask=mask, max_new_tokens=first + 1, **options)
    part = model.generate(ids, attention_mask=mask, max_new_tokens=first, **options)
    behind = {"past_key_values": part.past_key_values, "num_beams": beams}
    mask = torch.nn.functional.pad(mask, (0, first), value=1)
    rest = model.generate(part.sequences, attention_mask=mask, max_new_tokens=1, **options, **behind)
    assert torch.equal(rest.sequences, whole.sequences)
    if beams == 1:
        found = torch.stack(part.scores + rest.scores)
        torch.testing.assert_close(found, torch.stack(whole.scores), rtol=1e-5, atol=1e-5)


def test_several_ends_and_a_shortest_length(model, ids):
    """Any token of a list ends a row; min_length counts the prompt, min_new_tokens does not."""
    free = new(model, ids[:1], max_new_tokens=NEW)[0].tolist()
    ends = [free[4], free[2]]
    first = min(free.index(end) for end in ends)
    assert new(model, ids[:1], max_new_tokens=NEW, eos_token_id=ends).tolist() == [free[: first + 1]]
    for shortest in ({"min_length": READ + 8}, {"min_new_tokens": 8}):
        options = {"max_new_tokens": NEW, "eos_token_id": ends} | shortest
        held = new(model, ids[:1], **options)
        assert held.shape[1] >= 8 and not set(held[0, :7].tolist()) & set(ends)
        assert torch.equal(held, new(model, ids[:1], **options, use_cache=False))


class NeverTheNext(LogitsProcessor):
    """Forbids the token after the last one's number, and notes the lengths that it saw."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        return scores.scatter(1, (input_ids[:, -1:] + 1) % scores.shape[1], -torch.inf)


def test_a_logits_processor_of_ones_own(model, ids):
    """It sees the whole sequence before every token, and what it forbids is not written."""
    processor = NeverTheNext()
    found = model.generate(ids, max_new_tokens=NEW, logits_processor=LogitsProcessorList([processor]))
    assert processor.lengths == list(range(READ, READ + NEW))
    assert not ((found[:, READ:] - found[:, READ - 1 : -1]) % model.config.vocab_size == 1).any()


def test_allowed_tokens(model, ids):
    """prefix_allowed_tokens_fn is asked with each row's whole sequence, beams too."""
    asked: list[int] = []

    def evens(row: int, sequence: Tensor) -> list[int]:
        asked.append(len(sequence))
        return list(range(2, 30, 2))

    found = model.generate(ids, max_new_tokens=NEW, num_beams=2, prefix_allowed_tokens_fn=evens)[:, READ:]
    assert not (found % 2).any() and set(asked) == set(range(READ, READ + NEW))


class Numbers:
    """A tokenizer as far as streamers ask: a token's text is its number."""

    def decode(self, token_ids: Any, **_: Any) -> str:
        """Join numbers."""
        return "".join(f"{int(one)} " for one in token_ids)


def test_streaming_into_another_thread(model, ids):
    """An iterator streamer gives every new token; beams are refused by transformers in one line."""
    streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=60)  # type: ignore[arg-type]
    options = {"max_new_tokens": NEW, "streamer": streamer}
    thread = Thread(target=model.generate, args=(ids[:1],), kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert [int(one) for one in text.split()] == new(model, ids[:1], max_new_tokens=NEW)[0].tolist()
    with pytest.raises(ValueError, match="streamer"):
        model.generate(ids[:1], num_beams=2, **options)


@pytest.mark.parametrize("kind", ["prompt lookup", "itself", "another"])
@pytest.mark.parametrize("sampled", [False, True])
def test_assisted_decoding(kind, sampled, model, folder, ids):
    """Candidates change neither greedy tokens, their scores nor, with top_k 1, sampled ones."""
    helper = model
    if kind == "another":
        helper = load_tiny(folder)
        with torch.no_grad():
            helper.get_input_embeddings().weight.mul_(0.7)
    helper.generation_config.num_assistant_tokens = 2
    helper.generation_config.num_assistant_tokens_schedule = "constant"
    how = {"prompt_lookup_num_tokens": 2} if kind == "prompt lookup" else {"assistant_model": helper}
    options = {"eos_token_id": 36, "max_new_tokens": NEW} | ALL | ({"do_sample": True, "top_k": 1} if sampled else {})
    torch.manual_seed(0)
    found = model.generate(ids[:1], **options, **how)
    expected = model.generate(ids[:1], **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="num_return_sequences has to be 1"):
        model.generate(ids[:1], max_new_tokens=3, do_sample=True, num_return_sequences=2, **how)


def test_a_loop_of_ones_own(model, ids, tmp_path):
    """custom_generate takes a function or a folder's code, which get the model with its cache."""

    def greedy(model: Any, input_ids: Tensor, generation_config: Any, **options: Any) -> Tensor:
        part = input_ids
        while input_ids.shape[1] < generation_config.max_length:
            part = model(part, past_key_values=options["past_key_values"]).logits[:, -1:].argmax(dim=-1)
            input_ids = torch.cat([input_ids, part], dim=1)
        return input_ids

    expected = model.generate(ids, max_new_tokens=NEW)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, custom_generate=greedy), expected)
    (tmp_path / "custom_generate").mkdir()
    code = "def generate(model, left=1, **options):\n    return model.generate(**options)[:, left:]\n"
    (tmp_path / "custom_generate/generate.py").write_text(code)
    options = {"custom_generate": str(tmp_path), "trust_remote_code": True, "left": 5, "max_new_tokens": NEW}
    assert torch.equal(model.generate(ids, **options), expected[:, 5:])


def test_eager_attention_generates_what_sdpa_does(folder, ids):
    """Both implementations write the same tokens in float32."""
    eager, sdpa = (load_tiny(folder, attn_implementation=how, dtype=torch.float32) for how in ("eager", "sdpa"))
    options = {"max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0} | ALL
    found, expected = (one.generate(ids, **options) for one in (eager, sdpa))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-3, atol=1e-3)


def test_arguments_are_passed_on(model, ids):
    """prepare_inputs_for_generation forwards what it does not know."""
    given = {"output_attentions": True, "custom": "text", "number": 42}
    inputs = model.prepare_inputs_for_generation(ids, position_ids=torch.arange(READ)[None], **given)
    assert torch.equal(inputs["input_ids"], ids) and given.items() <= inputs.items()
    assert any("GenerationMixin" in base.__name__ for base in type(model).__bases__)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "does not take output_attentions"),
    "hidden states": (
        {"output_hidden_states": True, "return_dict_in_generate": True},
        "does not take output_hidden_states",
    ),
    "embeddings": ({"inputs_embeds": torch.zeros(2, 3, 16)}, "inputs_embeds"),
    "a static cache": ({"cache_implementation": "static"}, "cannot hold the memories of an HMT model"),
    "a quantized cache": ({"cache_implementation": "quantized"}, "cannot hold the memories of an HMT model"),
    "early exit": ({"assistant_early_exit": 1}, "assistant_early_exit=1 is not supported"),
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, "Contrastive Search requires `trust_remote_code=True`"),
    "DoLa": ({"dola_layers": "low"}, "Dola Generation requires `trust_remote_code=True`"),
    "groups of beams": ({"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0}, "Group Beam Search requires"),
    "constraints": ({"num_beams": 2, "force_words_ids": [[3]]}, "Constrained Beam Search requires"),
    "a batch with an assistant": ({"prompt_lookup_num_tokens": 2}, "batch"),
    "a mask of four dimensions": ({"attention_mask": torch.ones(2, 1, READ, READ)}, "2D"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, model, ids):
    """What cannot work is refused in one line, by this project or by transformers."""
    options, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as error:
        model.generate(ids, max_new_tokens=3, **options)
    assert "\n" not in str(error.value).strip()


def test_packed_rows_are_refused(model, ids):
    """Position ids that begin again inside a row would mean another document there."""
    positions = torch.arange(READ).repeat(2, 1)
    positions[:, 9:] -= 9
    with pytest.raises(ValueError, match="position_ids must be the default ones"):
        model(ids, position_ids=positions)
