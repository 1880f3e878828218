"""Shards of the token cache: the same tokens, kept after a kill, made by one process at a time."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PreTrainedTokenizer

import hmt_ds.data
from hmt_ds.data import DataError, load_tokenizer, token_files, token_work, tokenize_documents, train_sentencepiece
from hmt_ds.data import tokenize as tokenize_module
from hmt_ds.data.token_work import row_sizes, shard_rows, units_of

NOVEL = (Path(hmt_ds.data.__file__).parent / "samples" / "prideprejudice.txt").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(NOVEL[:100_000])
    Dataset.from_dict({"text": NOVEL.split("\n\n")}).save_to_disk(folder / "documents")
    train_sentencepiece([folder / "text.txt"], folder / "tokenizer", 600)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder) -> PreTrainedTokenizerFast:
    return load_tokenizer(str(folder / "tokenizer"))


@pytest.fixture(scope="module")
def documents(folder) -> Dataset:
    return Dataset.load_from_disk(folder / "documents")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(token_work, "SHARD", 50_000)
    monkeypatch.setattr(token_work, "UNIT", 10_000)


def test_rows_of_shards_and_units(small_shards, documents):
    """Each document once, in order, whatever its size; a shard has at least one."""
    sizes = row_sizes(documents)
    assert sizes.tolist() == [len(text.encode()) for text in documents["text"]]
    sizes[100] = 400_000
    shards = shard_rows(sizes)
    assert [row for first, end in shards for row in range(first, end)] == list(range(len(sizes)))
    assert all(sizes[first : end - 1].sum() < 50_000 for first, end in shards)
    for cuts in (True, False):
        units = [unit for number, rows in enumerate(shards) for unit in units_of(number, rows, sizes, cuts)]
        assert sum(unit.size for unit in units) == sizes.sum()
        pieces = [unit for unit in units if unit.parts]
        assert [unit.first for unit in pieces] == [100] * len(pieces) and bool(pieces) == cuts
        whole = [row for unit in units if not unit.parts for row in range(unit.first, unit.end)]
        assert whole == [row for row in range(len(sizes)) if not (cuts and row == 100)]
        assert all(shards[unit.shard][0] <= unit.first < unit.end <= shards[unit.shard][1] for unit in units)


def test_sizes_of_selected_rows(documents):
    some = documents.select([5, 3, 100])
    assert row_sizes(some).tolist() == [len(text.encode()) for text in some["text"]]


def test_shards_have_the_tokens_of_one_file(documents, tokenizer, tmp_path, monkeypatch):
    one = tokenize_documents(documents, tokenizer, cache_dir=tmp_path / "one")
    monkeypatch.setattr(token_work, "SHARD", 50_000)
    with_old = tokenize_documents(documents, tokenizer, cache_dir=tmp_path / "one")  # the file of all is found
    assert len(list((tmp_path / "one").glob("*.arrow"))) == 1
    for processes in (1, 2):
        many = tokenize_documents(documents, tokenizer, cache_dir=tmp_path / str(processes), processes=processes)
        assert many[:] == one[:] == with_old[:]
        assert len(list((tmp_path / str(processes)).glob("*.arrow"))) == len(shard_rows(row_sizes(documents))) > 10


def test_a_damaged_shard_alone_is_made_again(small_shards, documents, tokenizer, tmp_path):
    expected = tokenize_documents(documents, tokenizer, cache_dir=tmp_path)[:]
    files = sorted(tmp_path.glob("*.arrow"))
    states = [file.stat().st_mtime_ns for file in files]
    files[3].write_bytes(files[3].read_bytes()[:-1])
    assert tokenize_documents(documents, tokenizer, cache_dir=tmp_path)[:] == expected
    changed = [file for file, state in zip(files, states, strict=True) if file.stat().st_mtime_ns != state]
    assert changed == [files[3]]


def test_a_kept_cache_is_not_read_at_every_start(documents, tokenizer, tmp_path, monkeypatch):
    expected = tokenize_documents(documents, tokenizer, cache_dir=tmp_path)[:]
    hashed, real = [], token_files.sha256
    monkeypatch.setattr(token_files, "sha256", lambda file: hashed.append(file) or real(file))
    assert tokenize_documents(documents, tokenizer, cache_dir=tmp_path)[:] == expected and not hashed
    (cache,) = tmp_path.glob("*.arrow")
    os.utime(cache)
    assert tokenize_documents(documents, tokenizer, cache_dir=tmp_path)[:] == expected and hashed == [cache]


SCRIPT = """
import sys
from pathlib import Path
from datasets import Dataset
from hmt_ds.data import load_tokenizer, token_work, tokenize_documents

token_work.SHARD, token_work.UNIT = 50_000, 10_000
if __name__ == "__main__":
    folder, cache = map(Path, sys.argv[1:])
    documents = Dataset.load_from_disk(folder / "documents")
    tokenize_documents(documents, load_tokenizer(str(folder / "tokenizer")), cache_dir=cache, processes=2)
"""


def test_killed_and_resumed(small_shards, folder, documents, tokenizer, tmp_path):
    """SIGKILL, at some shard: its processes end too, whole shards are kept, and the result is the same."""
    expected = tokenize_documents(documents, tokenizer, cache_dir=tmp_path / "expected")[:]
    cache, script = tmp_path / "cache", tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = str(Path(hmt_ds.data.__file__).parents[2])
    run = subprocess.Popen([sys.executable, script, folder, cache], env=os.environ | {"PYTHONPATH": here})
    while len(list(cache.glob("*.sha256"))) < 2:
        assert run.poll() is None
        time.sleep(0.002)
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    kept = {file: file.stat().st_mtime_ns for file in cache.glob("*.arrow") if file.with_suffix(".sha256").is_file()}
    assert 2 <= len(kept) < len(shard_rows(row_sizes(documents)))
    assert tokenize_documents(documents, tokenizer, cache_dir=cache)[:] == expected
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert {file.suffix for file in cache.iterdir()} == {".arrow", ".sha256", ".lock"}  # nothing unfinished is left


def test_one_of_several_processes_tokenizes(documents, tokenizer, tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")
    made, real = fork.Value("i", 0), tokenize_module._tokenize_batch

    def counted(batch, first, **options):
        with made.get_lock():
            made.value += len(batch["text"])
        time.sleep(0.05)
        return real(batch, first, **options)

    monkeypatch.setattr(tokenize_module, "_tokenize_batch", counted)
    options = {"cache_dir": tmp_path}
    racers = [fork.Process(target=tokenize_documents, args=(documents, tokenizer), kwargs=options) for _ in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert made.value == len(documents)


class KilledTokenizer(PreTrainedTokenizerFast):
    """Ends its process, as the kernel does for lack of memory."""

    def __call__(self, text, **options):
        if text and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(text, **options)


def test_a_killed_process_is_a_line(documents, tokenizer, tmp_path):
    killed = KilledTokenizer(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match=r"^one of 2 processes was killed, perhaps for lack of memory: [^\n]+$"):
        tokenize_documents(documents, killed, cache_dir=tmp_path, processes=2)


def test_processes_of_processes_are_refused(documents, tokenizer, tmp_path, monkeypatch):
    """A script without the guard would be started again by each of its processes."""
    monkeypatch.setattr(tokenize_module, "parent_process", multiprocessing.current_process)
    with pytest.raises(DataError, match="__main__"):
        tokenize_documents(documents, tokenizer, cache_dir=tmp_path, processes=2)


def test_more_tokens_than_a_list_holds(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "MOST_TOKENS", 1000)
    documents = Dataset.from_dict({"text": ["short", NOVEL]})
    message = r"^document 1 \(the first is 0\): it has [\d,]+ tokens, more than the 1,000 that Arrow can hold: split it"
    with pytest.raises(DataError, match=message):
        tokenize_documents(documents, tokenizer, cache_dir=tmp_path)
    assert not list(tmp_path.glob("*.arrow*"))


def test_a_folder_that_cannot_be_written(documents, tokenizer, tmp_path, monkeypatch):
    """As of somebody else, or on a full disk; but what is in it is read."""
    real = tmp_path / "cache"
    expected = tokenize_documents(documents, tokenizer, cache_dir=real)[:]

    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied", str(self))

    for name in ("mkdir", "touch", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    assert tokenize_documents(documents, tokenizer, cache_dir=real)[:] == expected
    with pytest.raises(DataError, match=r"^cannot write tokens to .*: \[Errno 13\] Permission denied: [^\n]+$"):
        tokenize_documents(documents, tokenizer, add_eos=False, cache_dir=real)


class Words(PreTrainedTokenizer):
    """A tokenizer in Python: lower-case words, or as they are."""

    vocab_files_names: ClassVar = {"vocab_file": "words.json"}

    def __init__(self, vocab_file: str, lower: bool = True, **options):
        self.words, self.lower = json.loads(Path(vocab_file).read_text()), lower
        super().__init__(vocab_file=vocab_file, lower=lower, **options)

    vocab_size = property(lambda self: len(self.words))

    def get_vocab(self):
        return dict(self.words)

    def _tokenize(self, text, **_):
        return (text.lower() if self.lower else text).split()

    def _convert_token_to_id(self, token):
        return self.words.get(token, 0)

    def _convert_id_to_token(self, index):
        return "word"


def test_settings_of_a_tokenizer_in_python_have_caches_of_their_own(tmp_path):
    (tmp_path / "words.json").write_text(json.dumps({"?": 0, "a": 1, "A": 2}))
    documents = Dataset.from_dict({"text": ["a A a"]})
    found = []
    for lower in (True, False, True):
        tokenizer = Words(str(tmp_path / "words.json"), lower)
        found.append(tokenize_documents(documents, tokenizer, cache_dir=tmp_path / "cache")[0]["input_ids"])
    assert found == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2
