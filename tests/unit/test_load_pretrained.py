"""`hmt_ds.load_pretrained`: called with token ids it gives what the folder's own model gives, or an error in words."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import LLAMA, VOCABULARY
from tiny_folder import load_tiny, write_tiny

import hmt_ds
from hmt_ds.backbones import BackboneError, check_weights
from hmt_ds.backbones.hashes import HASHES
from hmt_ds.memory import HMT

IDS = torch.arange(3, 23)[None]


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


DAMAGED = {
    (
        "config.json",
        b'"interface": "paper"',
        b'"interface": "papEr"',
    ): r"\(memory\.interface: must be 'paper' or",
    ("config.json", b'"memory_tokens"', b'"memory_tokenS"'): r"memory\.memory_tokenS: unknown key; did you mean",
    (
        "config.json",
        b'"sensory_tokens": 2',
        b'"sensory_tokens": 20',
    ): r"sensory_tokens 20 above segment_length 6",
    ("config.json", b'"last_memories": 1', b'"last_memories": 2'): r"last_memories 2 without interface adapted",
    ("config.json", b'"silu"', b'"gelux"'): r"a model that cannot be loaded \('gelux' is unknown to transformers\)",
    ("config.json", b'"rope_type": "default"', b'"rope_type": "su"'): r"\('su' is unknown to transformers\)",
    (
        "config.json",
        b'"output_hidden_states": false',
        b'"output_hidden_states": {}',
    ): r"output_hidden_states is \{\}: must be true or false",
    ("config.json", b'"model_type": "llama"', b'"model_type": "lama"'): r"cannot be loaded \(Unrecognized model",
    ("model.safetensors", b'"dtype"', b'"dt\xffpe"'): r"weights that are damaged \(",
}


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_a_damaged_folder(folder, damage):
    """Without hashes, as an older version wrote it."""
    file, old, new = damage
    (folder / HASHES).unlink()
    content = (folder / file).read_bytes()
    assert old in content
    (folder / file).write_bytes(content.replace(old, new))
    with pytest.raises(BackboneError, match=DAMAGED[damage]) as raised:
        hmt_ds.load_pretrained(folder)
    assert "\n" not in str(raised.value)


def test_a_configuration_nested_beyond_what_json_reads(folder):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(BackboneError, match="was not written by hmt-ds convert"):
        hmt_ds.load_pretrained(folder)


def flip(file: Path) -> None:
    """Flip the last bit of a file, in safetensors one of a weight."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_in_a_weight(folder):
    """By load_pretrained, by the folder's own code, and as the source of a run."""
    flip(folder / "model.safetensors")
    for load in (hmt_ds.load_pretrained, load_tiny, lambda folder: check_weights(str(folder))):
        with pytest.raises(BackboneError, match=r"model.safetensors differs from what hmt-ds convert wrote: [^\n]+$"):
            load(folder)
    (folder / HASHES).unlink()
    assert hmt_ds.load_pretrained(folder) and not check_weights(str(folder))


@pytest.mark.parametrize("name", ["config.json", "hmt_memory_cell.py", HASHES])
def test_another_changed_file_is_a_warning(folder, caplog, name):
    """People edit them."""
    file = folder / name
    file.write_text(file.read_text() + ("\n" if name != HASHES else "{"))
    for load in (hmt_ds.load_pretrained, load_tiny):
        caplog.clear()
        load(folder)
        (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("hmt_ds")]
        assert str(file) in line and "\n" not in line
    assert check_weights(str(folder)) == [line]


def test_saving_into_the_folder_removes_its_hashes(folder):
    model = load_tiny(folder, dtype=torch.float32)
    with torch.no_grad():
        model.hmt.initial_prompt.embeddings.weight.add_(1)
    model.save_pretrained(folder)
    assert torch.equal(hmt_ds.load_pretrained(folder)(IDS).logits, model(IDS).logits)


def test_public_names():
    program = "import hmt_ds; print([name for name in dir(hmt_ds)])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed == "['__version__', 'load_pretrained']\n"
