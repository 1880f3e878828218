"""Damaged caches are made again with the same result; one that cannot be written is a line."""

from pathlib import Path

import datasets
import numpy as np
import pytest

from hmt_ds.data import DataError, load_documents, load_tokenizer, tokenize_documents, train_sentencepiece

DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: b"x" * 100,
    "no header": lambda content: bytes(64) + content[64:],
    "no tail": lambda content: content[:-20],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text("A short document with words.\n" * 50)
    (folder / "text.jsonl").write_text('{"text": "A short document with words."}\n' * 50)
    train_sentencepiece([folder / "text.txt"], folder / "tokenizer", 290)
    return folder


@pytest.fixture
def tokens(folder, tmp_path, monkeypatch):
    """Read and tokenize the documents, with caches of this test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    return lambda: tokenize_documents(
        load_documents(str(folder / "text.jsonl")), tokenizer, cache_dir=tmp_path / "cache"
    )[:]


def arrow_file(folder: Path) -> Path:
    """Return the only cached data set below a folder."""
    (file,) = folder.rglob("*.arrow")
    return file


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("cache", ["cache", "datasets"])
def test_a_damaged_cache_is_made_again(tokens, tmp_path, caplog, cache, damage):
    expected = tokens()
    file = arrow_file(tmp_path / cache)
    written = file.read_bytes()
    if cache == "datasets":
        for kept in (tmp_path / "cache").iterdir():  # else its tokens are found, and the text is not read
            kept.unlink()
    file.write_bytes(damage(written))
    assert tokens() == expected
    assert ("is damaged: the documents are tokenized again" in caplog.text) == (cache == "cache")
    assert tokens() == expected and file.stat().st_size == len(written)


def test_a_cache_that_cannot_be_written(tokens, tmp_path):
    expected = tokens()
    file = arrow_file(tmp_path / "cache")
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=rf"^cannot write tokens to {tmp_path}/cache: [^\n]+$"):
        tokens()
    file.rmdir()
    assert tokens() == expected


def test_a_flipped_bit_is_noticed(tokens, tmp_path, caplog):
    """Wherever it is: in token ids it would change the training without a word, in Arrow's headers end the process."""
    expected, random = tokens(), np.random.default_rng(0)
    file = arrow_file(tmp_path / "cache")
    written = file.read_bytes()
    for flips, place in enumerate(random.integers(8 * len(written), size=10), start=1):
        damaged = bytearray(written)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        assert tokens() == expected and file.read_bytes() == written, place
        assert caplog.text.count("is damaged") == flips, place


def test_a_cache_without_its_hash_is_made_again(tokens, tmp_path, caplog):
    """Nothing says whether it is whole; a hash that is damaged itself costs the same time."""
    expected, folder = tokens(), tmp_path / "cache"
    (digest,) = folder.glob("*.sha256")
    for damage, said in ((lambda: digest.write_bytes(b"\xff"), "is damaged"), (digest.unlink, "has no hash")):
        damage()
        caplog.clear()
        assert tokens() == expected and said in caplog.text and digest.is_file()
        caplog.clear()
        assert tokens() == expected and not caplog.text


def test_a_cache_of_an_earlier_version_is_used(tokens, tmp_path, caplog):
    """Its hash alone, without the file's state: it is read once, and the state is added."""
    expected, folder = tokens(), tmp_path / "cache"
    (digest,) = folder.glob("*.sha256")
    written = digest.read_text()
    digest.write_text(written.split()[0])
    made = arrow_file(folder).stat().st_mtime_ns
    assert tokens() == expected and not caplog.text and digest.read_text() == written
    assert arrow_file(folder).stat().st_mtime_ns == made


def test_a_setting_that_changes_tokens_has_a_cache_of_its_own(folder, tmp_path):
    """split_special_tokens is in tokenizer_config.json, and not in the vocabulary that the cache is named after."""
    (tmp_path / "text.jsonl").write_text('{"text": "A short </s> document."}\n')
    documents, tokenizer = load_documents(str(tmp_path / "text.jsonl")), load_tokenizer(str(folder / "tokenizer"))
    whole, split = (
        tokenize_documents(documents, tokenizer, cache_dir=tmp_path / "cache")[0]["input_ids"]
        for tokenizer.split_special_tokens in (False, True)
    )
    assert len(split) > len(whole) and split[:-1] == tokenizer(documents[0]["text"]).input_ids
