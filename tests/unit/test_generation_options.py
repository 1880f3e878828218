"""Options of transformers' generation over a converted folder: each means what it means there, over all segments.

What they should give is what transformers' loop gives without a cache, with one whole forward pass for every token.
"""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import LLAMA, L, document
from tiny_folder import HMTForCausalLM, load_endless, load_tiny, write_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
    dynamic_module_utils,
)

import hmt_ds

NOVEL = Path(hmt_ds.__file__).parent / "data/samples/persuasion.txt"
READ, NEW = 3 * L + 2, 4 * L


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a converted folder."""
    return write_tiny(tmp_path_factory.mktemp("folder") / "hf", LLAMA, interface="adapted", recalled_memories=2)


@pytest.fixture
def model(folder) -> HMTForCausalLM:
    """Load it; nothing ends a row."""
    return load_endless(folder)


@pytest.fixture
def ids() -> Tensor:
    """One document."""
    torch.manual_seed(3)
    return document(READ)[None]


def new(model: HMTForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """The new tokens of every sequence."""
    torch.manual_seed(7)
    return model.generate(ids, **options)[:, ids.shape[1] :]


def test_lengths(model, ids):
    """The call's, the configuration's, and the folder's own; 0 is refused as transformers refuses it."""
    assert new(model, ids).shape[1] == new(model.backbone_model, ids, eos_token_id=None, pad_token_id=0).shape[1]
    assert new(model, ids, max_length=READ + 9).shape == (1, 9)
    assert new(model, ids, generation_config=GenerationConfig(max_new_tokens=13, pad_token_id=0)).shape == (1, 13)
    assert torch.equal(model.generate(inputs=ids, max_new_tokens=5), model.generate(input_ids=ids, max_new_tokens=5))
    model.generation_config.max_new_tokens = 11
    assert new(model, ids).shape == (1, 11)
    with pytest.raises(ValueError, match="max_new_tokens"):
        new(model, ids, max_new_tokens=0)
    with pytest.raises(ValueError, match="lenght"):
        new(model, ids, max_lenght=5)
    model.generation_config.max_new_tokens = None
    end = int(new(model, ids, max_new_tokens=NEW)[0, 3])
    ended = new(model, ids, max_new_tokens=NEW, eos_token_id=end)
    assert ended.shape[1] <= 4 and new(model, ids, max_new_tokens=NEW, min_new_tokens=9, eos_token_id=end).shape[1] > 8


def test_the_folders_own_settings(folder, tmp_path, ids):
    """generation_config.json counts: sampling, and the length."""
    model = load_tiny(folder)
    model.generation_config = GenerationConfig(do_sample=True, temperature=3.0, max_new_tokens=9, pad_token_id=0)
    model.save_pretrained(tmp_path / "hf")
    again = load_tiny(tmp_path / "hf")
    torch.manual_seed(0)
    found = [again.generate(ids) for _ in range(4)]
    assert {len(one[0]) for one in found} == {READ + 9} and len({tuple(one[0].tolist()) for one in found}) > 1


class After(StoppingCriteria):
    """Stops after a number of calls, and notes the lengths that it saw."""

    def __init__(self, calls: int):
        self.calls, self.lengths = calls, []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        return torch.full((len(input_ids),), len(self.lengths) >= self.calls)


@pytest.mark.parametrize("calls", [1, L - 2, L - 1, L, L + 1, 2 * L + 3])
def test_a_stopping_criterion_sees_the_whole_sequence(model, ids, calls):
    """Once for every token, at borders too."""
    stop = After(calls)
    assert new(model, ids, max_new_tokens=NEW, stopping_criteria=StoppingCriteriaList([stop])).shape == (1, calls)
    assert stop.lengths == list(range(READ + 1, READ + calls + 1))


def test_max_time(model, ids):
    begin = time.monotonic()
    assert new(model, ids, max_new_tokens=10**6, max_time=0.5).shape[1] > 5
    assert time.monotonic() - begin < 10


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of the sample novel."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train([str(NOVEL)], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_text_over_borders(tmp_path, capsys):
    """A streamer prints all that is written, and a stop string is found wherever it stands."""
    tokenizer = train_tokenizer()
    backbone = LLAMA | {"vocab_size": len(tokenizer)}
    model = load_tiny(write_tiny(tmp_path / "hf", backbone, interface="adapted"))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    ids = torch.tensor([tokenizer(NOVEL.read_text(encoding="utf-8")[2000:2200])["input_ids"][:READ]])
    # whole letters alone, each token once
    broken = [n for n in range(len(tokenizer)) if not tokenizer.decode([n]).isascii()]
    options: dict[str, Any] = {"max_new_tokens": NEW, "no_repeat_ngram_size": 1, "suppress_tokens": broken}
    written = model.generate(ids, **options, streamer=TextStreamer(tokenizer, skip_prompt=True))[0, READ:]
    assert capsys.readouterr().out.strip() == tokenizer.decode(written).strip()
    for at in (L - 3, L - 2, L - 1, L):  # the last token of a segment is written at L - 3, for READ is 3 L + 2
        stop = tokenizer.decode(written[at - 1 : at + 1])
        stopped = model.generate(ids, **options, stop_strings=[stop], tokenizer=tokenizer)[0, READ:]
        assert len(stopped) == at + 1 and tokenizer.decode(stopped).endswith(stop)


def test_what_is_returned(model, ids):
    """Scores of every token, and a cache that goes on where the sequence ends."""
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    output = model.generate(ids, max_new_tokens=NEW, **options)
    assert len(output.scores) == len(output.logits) == NEW
    assert output.past_key_values.get_seq_length() == READ + NEW - 1
    with torch.no_grad():
        expected = model(output.sequences).logits[:, READ - 1 : -1].transpose(0, 1)
    torch.testing.assert_close(torch.stack(output.logits), expected.float(), rtol=1e-5, atol=1e-5)
    longer = torch.cat([output.sequences, ids[:, :3]], dim=1)
    options = {"attention_mask": torch.ones_like(longer), "max_new_tokens": NEW}
    again = model.generate(longer, past_key_values=output.past_key_values, **options)
    assert torch.equal(again, model.generate(longer, **options))


@pytest.mark.parametrize("number", [1, 3, 8])
def test_candidates_are_taken_back(model, ids, number):
    """Prompt lookup proposes tokens, over borders too, and those that are not accepted leave no trace."""
    twice = torch.cat([ids[:, :9]] * 3, dim=1)
    model.generation_config.eos_token_id = 36  # transformers 5.0 looks up nothing without one
    found = model.generate(twice, max_new_tokens=NEW, prompt_lookup_num_tokens=number)
    assert torch.equal(found, model.generate(twice, max_new_tokens=NEW))


def test_nothing_but_pads(model, ids):
    """A pad has the logits of the token before it, behind an undone border too; alone it means nothing."""
    with torch.no_grad():
        expected = model(ids[:, : 2 * L]).logits[:, -1:]
        cache = model(ids[:, : 2 * L + 1], use_cache=True).past_key_values
        cache.crop(-1)
        pads = {"attention_mask": torch.zeros(1, 1, dtype=torch.long), "past_key_values": cache}
        torch.testing.assert_close(model(ids[:, :1], **pads).logits, expected)
        assert model(ids, attention_mask=torch.zeros_like(ids), use_cache=True).logits.isfinite().all()


def test_taking_back_tokens(model, ids):
    """Any number of them over some borders; more than that is refused."""
    with torch.no_grad():
        expected = model(ids).logits
        for number in (1, 2, 3, L, L + 2, L + 3, 2 * L + 2):
            cache = model(ids, use_cache=True).past_key_values
            cache.crop(-number)
            assert cache.get_seq_length() == READ - number
            found = model(ids[:, READ - number :], past_key_values=copy.deepcopy(cache)).logits
            torch.testing.assert_close(found, expected[:, READ - number :])
            with pytest.raises(ValueError, match="tokens: only those of the last 3 segments can be"):
                cache.crop(-READ)


def test_reading_in_chunks(model, ids):
    expected = model.generate(ids, max_new_tokens=NEW)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, prefill_chunk_size=5), expected)


def test_rows_of_a_cache(model, ids):
    """One reading serves several questions; a number of rows that does not fit is refused."""
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    questions = torch.stack([document(4), document(4), document(4)])
    whole = torch.cat([ids.expand(3, -1), questions], dim=1)
    found = model.generate(whole, past_key_values=copy.deepcopy(cache), max_new_tokens=NEW)
    assert torch.equal(found, model.generate(whole, max_new_tokens=NEW))
    with torch.no_grad(), pytest.raises(ValueError, match="input_ids has 3 rows, but past_key_values has 2"):
        cache.batch_repeat_interleave(2)
        model(questions, past_key_values=cache)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"past_key_values": DynamicCache()}, "past_key_values is a DynamicCache, which cannot hold a memory"),
        (
            {"cache_implementation": "static"},
            "cache_implementation='static' cannot hold the memories of an HMT model",
        ),
        ({"inputs_embeds": torch.zeros(1, 3, 16)}, "inputs_embeds"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "does not take output_attentions"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_is_refused(options, said, model, ids):
    with pytest.raises(ValueError, match=said):
        model.generate(ids, max_new_tokens=3, **options)


def test_labels_are_not_scored_behind_a_cache(model, ids):
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="labels cannot be scored behind past_key_values"):
        model(ids, labels=ids, past_key_values=cache)
    assert model(ids, labels=ids, use_cache=True).past_key_values is None


@pytest.mark.parametrize("assistant", ["another of its kind", "its own backbone"])
def test_an_assistant(model, folder, ids, assistant):
    """Its candidates speed up greedy decoding without changing it; and the model can assist another."""
    model.generation_config.eos_token_id = 36
    helper = load_tiny(folder) if assistant == "another of its kind" else model.backbone_model
    with torch.no_grad():
        helper.get_input_embeddings().weight[5:9] += 0.3 * (helper is not model.backbone_model)
    assert torch.equal(
        model.generate(ids, max_new_tokens=NEW, assistant_model=helper), model.generate(ids, max_new_tokens=NEW)
    )
    plain = model.backbone_model
    options = {"max_new_tokens": NEW, "eos_token_id": 36, "pad_token_id": 0}
    assert torch.equal(plain.generate(ids, assistant_model=model, **options), plain.generate(ids, **options))


def test_from_nothing_but_bos(model):
    assert model.generate(bos_token_id=3, max_new_tokens=NEW).shape == (1, 1 + NEW)


def test_all_logits_of_the_prompt(model, ids):
    """``logits_to_keep`` reaches the forward pass."""
    found = model.generate(ids, max_new_tokens=NEW, logits_to_keep=0)
    assert torch.equal(found, model.generate(ids, max_new_tokens=NEW))


def test_scores_of_beams(model, ids):
    """They are the summed log-probabilities of one reading of each sequence."""
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    output = model.generate(ids, max_new_tokens=NEW, num_beams=3, num_return_sequences=2, **options)
    with torch.no_grad():
        logits = model(output.sequences).logits[:, READ - 1 : -1].log_softmax(dim=-1)
    expected = logits.gather(2, output.sequences[:, READ:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(output.sequences_scores, expected.float(), rtol=1e-4, atol=1e-4)


def test_batches_without_end_are_refused(model):
    """transformers' server asks whether there is paged attention, and does without."""
    assert not hasattr(model, "init_continuous_batching")
    with pytest.raises(AttributeError, match="init_continuous_batching"):
        model.generate_batch([[3, 4, 5]])


def test_what_transformers_server_loads(folder, tmp_path, monkeypatch):
    """It takes the class of this name out of transformers, and the files have the model's own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    served = getattr(transformers, config.architectures[0]).from_pretrained(folder, trust_remote_code=True)
    assert type(served).__name__ == "HMTForCausalLM"
    served.save_pretrained(tmp_path / "again")
    for place in (folder, tmp_path / "again"):
        assert json.loads((place / "config.json").read_text())["architectures"] == ["HMTForCausalLM"]
