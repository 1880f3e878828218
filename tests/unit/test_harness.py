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
    folder = write_tiny(tmp_path / "hf", LLAMA)
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
