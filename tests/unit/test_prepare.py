"""`hmt-ds prepare`: tokens made ahead of a run, and found again without the text."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
import yaml

import hmt_ds.data
from hmt_ds.data import DataError, load_tokenizer, prepared, train_sentencepiece
from hmt_ds.data.describe import padding_share
from hmt_ds.data.formats import Format
from hmt_ds.data.prepared import read_tokens

NOVEL = (Path(hmt_ds.data.__file__).parent / "samples" / "prideprejudice.txt").read_text()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(NOVEL[:50_000])
    return train_sentencepiece([folder / "text.txt"], folder / "new", 400)


@pytest.fixture
def read(tokenizer_folder, tmp_path, monkeypatch):
    """Read the folder of documents; the second value says whether their text was read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("The first document.")
    tokenizer, real, calls = load_tokenizer(str(tokenizer_folder)), prepared.read_source, []
    monkeypatch.setattr(prepared, "read_source", lambda *given, **keys: calls.append(given) or real(*given, **keys))

    def tokens(source=tmp_path / "text", **options):
        calls.clear()
        options = {"format": Format(), "cache_dir": tmp_path / "cache"} | options
        found = read_tokens(str(source), tokenizer, **options)
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in found.tokens["input_ids"]], bool(calls)

    return tokens


def test_text_is_read_once(read):
    assert read() == (["The first document."], True)
    assert read() == (["The first document."], False)
    assert read(separator="^The") == (["The first document."], True)  # another key of the source
    assert read(separator="^The") == (["The first document."], False)


def test_a_changed_file_is_noticed(read, tmp_path):
    """Also by one of the same size and time of modification, as rsync -t leaves it."""
    read()
    file = tmp_path / "text" / "a.txt"
    before = file.stat()
    file.write_text("The other document.")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert read() == (["The other document."], True)
    (tmp_path / "text" / "b.txt").write_text("A further one.")
    assert read() == (["The other document.", "A further one."], True)
    file.unlink()
    assert read() == (["A further one."], True)
    assert read() == (["A further one."], False)


@pytest.mark.parametrize("damage", ["{", "[]", '{"tokens": []}', '{"tokens": ["absent.arrow"]}', None])
def test_a_damaged_record_costs_reading_the_text(read, tmp_path, damage):
    expected, _ = read()
    (record,) = (tmp_path / "cache").glob("source-*.json")
    if damage is None:
        (tokens,) = (tmp_path / "cache").glob("*.arrow")
        tokens.write_bytes(tokens.read_bytes()[:-100])
    else:
        record.write_text(damage)
    assert read() == (expected, True)
    assert read() == (expected, False)


def test_what_is_left_out_is_said_each_time(read, tmp_path, caplog):
    (tmp_path / "text" / "picture.png").write_bytes(b"\0")
    caplog.set_level("INFO", logger="hmt_ds")
    for is_read in (True, False):
        caplog.clear()
        assert read()[1] == is_read
        assert "left out 1 of kind '.png' (picture.png)" in caplog.text


def test_a_saved_data_set(read, tmp_path):
    for text in ("one", "two"):
        datasets.Dataset.from_dict({"text": [text]}).save_to_disk(tmp_path / "saved")
        assert read(tmp_path / "saved") == ([text], True)
        assert read(tmp_path / "saved") == ([text], False)


def test_an_absent_source_is_an_error_although_it_was_read_before(read, tmp_path):
    read()
    (tmp_path / "text").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        read()


@pytest.mark.parametrize(("lengths", "share"), [([4, 8], 0), ([1], 3 / 4), ([5, 4, 6], 5 / 20)])
def test_padding(lengths, share):
    assert padding_share(np.asarray(lengths), 4) == pytest.approx(share)


COMMAND = """
import sys
from hmt_ds.cli import main
try:
    main()
finally:
    print("deepspeed" in sys.modules, "transformers" in sys.modules)
"""


def hmt_ds_prepare(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    here = {"PYTHONPATH": str(Path(hmt_ds.data.__file__).parents[2]), "HF_HOME": str(cwd / "hf")}
    command = [sys.executable, "-c", COMMAND, "prepare", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=os.environ | here, capture_output=True, text=True, check=False)


@pytest.fixture
def recipe(tmp_path, tokenizer_folder) -> Path:
    lines = [json.dumps({"text": NOVEL[start : start + 1000]}) for start in range(0, 50_000, 1000)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines[:5]))
    keys = {
        "model": {"source": {"model_type": "llama", "vocab_size": 400}, "tokenizer": str(tokenizer_folder)},
        "memory": {"segment_length": 256, "sensory_tokens": 8},
        "data": {"train": {"source": "train.jsonl"}, "validation": {"source": "held_out.jsonl"}, "cache_dir": "cache"},
        "training": {"output": "run", "steps": 1},
        "optimizer": {"lr": 1e-3},
        "deepspeed": "ds_configs/zero1.json",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return tmp_path / "recipe.yaml"


def test_the_command(recipe, tmp_path):
    """It makes what `train` looks for, without DeepSpeed."""
    done = hmt_ds_prepare(recipe, "--processes", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("data        50 documents, ") and "% of all positions" in lines[0]
    assert lines[1].startswith("held out    5 documents, ")
    assert lines[2:] == ["cache       cache", f"next        hmt-ds train {recipe}", "False True"]
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len([file for file in made if file.suffix == ".arrow"]) == 2
    again = hmt_ds_prepare(recipe, cwd=tmp_path)
    assert again.stdout == done.stdout
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == made


def test_interrupted(recipe, tmp_path):
    """Ctrl-C, at whatever moment: one line, no traceback of any process, and the same command goes on."""
    command = [sys.executable, "-c", COMMAND, "prepare", str(recipe), "--processes", "2"]
    here = {"PYTHONPATH": str(Path(hmt_ds.data.__file__).parents[2]), "HF_HOME": str(tmp_path / "hf")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    run = subprocess.Popen(command, cwd=tmp_path, env=os.environ | here, **pipes)
    while len(psutil.Process(run.pid).children()) < 2 and run.poll() is None:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in said
    assert "stopped: shards that are whole are kept" in said
    assert hmt_ds_prepare(recipe, "--processes", 1, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--data.train.source", "absent.jsonl"], "data.train: 'absent.jsonl' is neither a file nor a folder"),
        (
            ["--data.train.source", "a.txt", "--data.validation.source", "b.txt"],
            "data.validation: 'b.txt' is neither a file nor a folder",
        ),
        (["--model.tokenizer", "/absent"], "model.tokenizer: tokenizer '/absent' is neither a file"),
        (
            ["--model.source.vocab_size", "300"],
            "model.tokenizer: the tokenizer's ids go up to 399, but the model's voc",
        ),
        (["--processes", "0"], "--processes: must be at least 1, got '0'"),
        (["--data.cache_dir", "train.jsonl"], "cannot write tokens: train.jsonl is a file"),
    ],
)
def test_mistakes_are_lines(recipe, tmp_path, words, error):
    done = hmt_ds_prepare(recipe, *words, cwd=tmp_path)
    assert done.returncode == 2 and f"error: {error}" in done.stderr.replace("data.train: cannot", "cannot")
    assert "Traceback" not in done.stderr
