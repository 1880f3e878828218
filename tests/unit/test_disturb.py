"""Documents that take turns, and documents with filler between their parts."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hmt_ds import data
from hmt_ds.config.data_section import Source
from hmt_ds.data import DataError, load_tokenizer
from hmt_ds.data.disturb import FILLER, dilate, interleave
from hmt_ds.data.tokenize import FEATURES, WEIGHTED, document_lengths
from hmt_ds.preflight.source_tokens import tokens_of

WORDS = Path(data.__file__).parent / "samples" / "words"
LENGTHS = (7, 3, 5)


def tokens(weighted: bool = False) -> Dataset:
    ids = [list(range(10 * n, 10 * n + length)) for n, length in enumerate(LENGTHS)]
    columns = {"input_ids": ids, "length": list(LENGTHS)}
    if weighted:
        columns["weights"] = [[token / 100 for token in row] for row in ids]
    return Dataset.from_dict(columns, features=WEIGHTED if weighted else FEATURES)


def test_pairs_take_turns_and_nothing_is_lost(tmp_path):
    turns = interleave(tokens(), 2, tmp_path)
    assert turns["input_ids"][:] == [[0, 1, 10, 11, 2, 3, 12, 4, 5, 6], [20, 21, 22, 23, 24]]
    assert document_lengths(turns).tolist() == [10, 5] and turns.column_names == ["input_ids", "length"]


def test_weights_stay_with_their_tokens(tmp_path):
    turns = interleave(tokens(weighted=True), 2, tmp_path)
    for ids, weights in zip(turns["input_ids"], turns["weights"], strict=True):
        np.testing.assert_allclose(weights, np.asarray(ids) / 100, rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_filler_has_no_weight(weighted, tmp_path):
    tokenizer = load_tokenizer(str(WORDS))
    words = tokenizer(FILLER, add_special_tokens=False).input_ids
    diluted = dilate(tokens(weighted), 3, tokenizer, tmp_path)
    filler = words[:3]
    assert diluted["input_ids"][:2] == [[0, 1, 2, *filler, 3, 4, 5, *filler, 6], [10, 11, 12]]
    own = [0.0, 0.01, 0.02, 0, 0, 0, 0.03, 0.04, 0.05, 0, 0, 0, 0.06] if weighted else [1, 1, 1, 0, 0, 0] * 2 + [1]
    np.testing.assert_allclose(diluted["weights"][0], own, rtol=1e-6)
    assert document_lengths(diluted).tolist() == [13, 3, 8]


def test_the_same_documents_are_found_again(tmp_path):
    first, second, other = (interleave(tokens(), every, tmp_path) for every in (2, 2, 3))
    assert first._fingerprint == second._fingerprint != other._fingerprint
    assert first.cache_files == second.cache_files != other.cache_files


def test_damaged_files_are_made_again_and_an_unwritable_cache_is_a_line(tmp_path):
    """Arrow would not notice a flipped bit: a token would be another one."""
    right = interleave(tokens(), 2, tmp_path)["input_ids"][:]
    (file,) = tmp_path.glob("*.arrow")
    whole, state = file.read_bytes(), file.stat()
    at = whole.index(np.asarray(right[0], np.int32).tobytes())
    for damaged in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:at]):
        file.write_bytes(damaged)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert interleave(tokens(), 2, tmp_path)["input_ids"][:] == right
    with pytest.raises(DataError, match=r"cannot write tokens to .*no folder"):
        interleave(tokens(), 2, tmp_path / "no folder")


def test_the_keys_of_a_source(tmp_path):
    tokenizer = load_tokenizer(str(WORDS))
    for name, text in (("a", "Where is the flat comb ? " * 4), ("b", "It is in Damascus . " * 3)):
        (tmp_path / f"{name}.txt").write_text(text)
    plain, turns, both = (
        tokens_of(Source(source=str(tmp_path / "*.txt"), **keys), tokenizer, tmp_path / "cache").tokens
        for keys in ({}, {"interleave": 5}, {"interleave": 5, "dilate": 4})
    )
    first, second = plain["input_ids"][:]
    assert turns["input_ids"][0][:15] == [*first[:5], *second[:5], *first[5:10]]
    assert both["input_ids"][0][:4] == first[:4] and both["weights"][0][:9] == [1, 1, 1, 1, 0, 0, 0, 0, 1]
