"""lm-evaluation-harness's model `hmt`: documents of many segments, in batches, as one forward pass scores them.

The harness is not among the packages of the tests: `pip install -e .[harness]`.
"""

import shutil
from pathlib import Path

import pytest
import torch
from tiny import LLAMA, VOCABULARY
from tiny_folder import write_tiny

import hmt_ds
from hmt_ds import data

pytest.importorskip("lm_eval")
WORDS = Path(data.__file__).parent / "samples" / "words"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a converted folder with a tokenizer."""
    return with_words(write_tiny(tmp_path / "hf", LLAMA))


def with_words(folder: Path) -> Path:
    """Copy a tokenizer into a folder."""
    for file in WORDS.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("at_once", [7, 2048])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_log_likelihoods_are_those_of_one_forward_pass(folder, batch_size, at_once, monkeypatch):
    from hmt_ds.tasks import harness

    monkeypatch.setattr(harness, "AT_ONCE", at_once)
    asked = harness.HarnessModel(str(folder), batch_size=batch_size)
    assert asked.max_length == harness.WITHOUT_END
    model = hmt_ds.load_pretrained(folder)
    requests, expected = [], []
    for context, continuation in ((1, 60), (30, 3), (5, 1), (19, 20), (41, 2)):
        ids = torch.randint(3, VOCABULARY, (1, context + continuation))
        if len(requests) % 2:  # greedy decoding gives its last token
            ids[0, -1] = model(ids[:, :-1]).logits[0, -1].argmax()
        with torch.no_grad():
            scores = model(ids[:, :-1]).logits[0].double().log_softmax(dim=-1)
        found = scores.gather(-1, ids[0, 1:, None])[context - 1 :]
        greedy = bool((scores.argmax(dim=-1) == ids[0, 1:])[context - 1 :].all())
        expected.append((found.sum().item(), greedy))
        requests.append((("", ""), ids[0, :context].tolist(), ids[0, context:].tolist()))
    answers = asked._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]
    torch.testing.assert_close(
        torch.tensor([score for score, _ in answers]), torch.tensor([score for score, _ in expected]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_harness_own_model_scores_as_one_forward_pass(tmp_path, batch_size):
    """Rolling likelihoods of whole documents and choices, with `--model hf`; it pads with 0."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder = with_words(write_tiny(tmp_path / "hf", LLAMA | {"vocab_size": 384}))
    options = {"trust_remote_code": True, "max_length": 10**6, "pad_token_id": 0, "dtype": "float32"}
    asked = HFLM(str(folder), device="cpu", batch_size=batch_size, **options)
    model = hmt_ds.load_pretrained(folder)

    def score(context: list[int], continuation: list[int]) -> float:
        ids = torch.tensor([context + continuation])
        with torch.no_grad():
            scores = model(ids[:, :-1]).logits[0].double().log_softmax(dim=-1)
        return float(scores.gather(-1, ids[0, 1:, None])[len(context) - 1 :].sum())

    words = "The flat comb is in Damascus . Where is the velvet blanket ? It is in Glasgow . "
    texts = [(words * 5)[:length] for length in (350, 80, 211, 19, 130)]
    choices = [(text.strip(), f" {answer}") for text in texts for answer in ("Damascus", "Glasgow . Where is it ?")]
    rolling = asked.loglikelihood_rolling([Instance("", {}, (text,), 0) for text in texts], disable_tqdm=True)
    chosen = asked.loglikelihood([Instance("", {}, pair, 0) for pair in choices], disable_tqdm=True)
    expected = [score([asked.prefix_token_id], asked.tok_encode(text)) for text in texts]
    expected += [score(*asked._encode_pair(*pair)) for pair in choices]
    found = [*rolling, *(score for score, _ in chosen)]
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-6)
