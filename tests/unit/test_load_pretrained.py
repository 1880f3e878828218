"""`hmt_ds.load_pretrained`: called with token ids it gives what the folder's own model gives, or an error in words."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import LLAMA, VOCABULARY
from tiny_folder import load_tiny, write_tiny

import hmt_ds
from hmt_ds.backbones import BackboneError
from hmt_ds.memory import HMT


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a converted folder."""
    return write_tiny(tmp_path / "hf", LLAMA | {"pad_token_id": 2})


def test_token_ids_give_logits(folder):
    """Of documents of several segments, padded ones too; `generate` is that of transformers; the weights are shared."""
    ours, theirs = hmt_ds.load_pretrained(folder, dtype=torch.float64), load_tiny(folder)
    assert isinstance(ours, HMT) and not any("causal_lm" in name for name in ours.state_dict())
    ids = torch.randint(3, VOCABULARY, (2, 25))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    expected = theirs(ids).logits
    assert torch.equal(ours(ids).logits, expected) and torch.equal(ours(input_ids=ids).logits, expected)
    assert torch.equal(ours(ids, attention_mask=mask).logits[:, 9:], theirs(ids, attention_mask=mask).logits[:, 9:])
    assert torch.equal(ours(ids, labels=ids).loss, theirs(ids, labels=ids).loss)
    generated = [model.generate(ids, max_new_tokens=9, do_sample=False) for model in (ours.causal_lm, theirs)]
    assert torch.equal(*generated)
    with torch.no_grad():
        ours.initial_prompt.embeddings.weight.add_(1)
    assert not torch.equal(ours(ids).logits, expected)


@pytest.mark.parametrize(
    ("ids", "error", "said"),
    [
        ("a text", TypeError, r"token ids, a tensor .*\[batch, tokens\].*got str"),
        ([[3, 4]], TypeError, "got list"),
        (None, TypeError, "got NoneType"),
        (torch.ones(1, 4), TypeError, r"got a tensor of torch\.float32"),
        (torch.tensor([3, 4]), ValueError, r"shape \[batch, tokens\]"),
        (torch.empty(1, 0, dtype=torch.long), ValueError, "at least one token"),
        (torch.tensor([[3, VOCABULARY]]), ValueError, f"from 0 to {VOCABULARY - 1}, got some from 3 to {VOCABULARY}"),
        (torch.tensor([[-1, 3]]), ValueError, "got some from -1 to 3"),
    ],
    ids=str,
)
def test_what_is_not_token_ids(folder, ids, error, said):
    with pytest.raises(error, match=said) as raised:
        hmt_ds.load_pretrained(folder)(ids)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "config.json",
            b'"interface": "paper"',
            b'"interface": "papEr"',
            r"damaged \(memory\.interface: must be 'paper' or",
        ),
        ("config.json", b'"memory_tokens"', b'"memory_tokenS"', r"memory\.memory_tokenS: unknown key; did you mean"),
        ("model.safetensors", b'"dtype"', b'"dt\xffpe"', r"weights that are damaged \("),
    ],
)
def test_a_damaged_folder(folder, file, old, new, said):
    content = (folder / file).read_bytes()
    assert old in content
    (folder / file).write_bytes(content.replace(old, new))
    with pytest.raises(BackboneError, match=said) as raised:
        hmt_ds.load_pretrained(folder)
    assert "\n" not in str(raised.value)


def test_public_names():
    program = "import hmt_ds; print([name for name in dir(hmt_ds)])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "['__version__', 'load_pretrained']\n"
