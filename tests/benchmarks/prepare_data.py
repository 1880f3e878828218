"""Measure `hmt-ds prepare`: seconds, tokens per second, and the memory of its processes.

The text is made of the paragraphs of the samples, in random order. Figures are in DATA.md.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hmt_ds.data import train_sentencepiece

SAMPLES = Path(__file__).parents[2] / "hmt_ds" / "data" / "samples"
FILES = sorted(SAMPLES.glob("*.txt"))
TICK = 0.1  # seconds between two looks at memory


def documents(megabytes: float, count: int) -> Iterator[str]:
    """Yield documents of equal size, `megabytes` (10^6 bytes) together."""
    paragraphs = [part for file in FILES for part in file.read_text().split("\n\n")]
    draw = random.Random(0)
    for _ in range(count):
        parts, size = [], 0
        while size < megabytes * 1e6 / count:
            parts.append(draw.choice(paragraphs))
            size += len(parts[-1].encode()) + 2
        yield "\n\n".join(parts)


def make_tokenizer(folder: Path, kind: str) -> Path:
    """Train a tokenizer on the samples: `words` as GPT-2's, `pieces` as Llama 2's (without words)."""
    if kind == "pieces":
        return train_sentencepiece(FILES, folder, 4000)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    backend.train(list(map(str, FILES)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, source: Path, tokenizer: Path) -> Path:
    keys = {
        "model": {"source": {"model_type": "llama"}, "tokenizer": str(tokenizer)},
        "memory": {"segment_length": 1024, "sensory_tokens": 32},
        "data": {"train": {"source": str(source)}, "cache_dir": str(folder / "cache")},
        "training": {"output": str(folder / "run"), "steps": 1},
        "optimizer": {"lr": 1e-3},
        "deepspeed": "ds_configs/zero1.json",
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(keys))
    return file


def memory_of(pid: int) -> tuple[float, float]:
    """Return the largest resident and the largest anonymous memory of a process and those below it, in MB."""
    resident, anonymous = 0.0, 0.0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                memory = process.memory_info()
                resident = max(resident, memory.rss / 1e6)
                anonymous = max(anonymous, (memory.rss - memory.shared) / 1e6)
    return resident, anonymous


def cpu_seconds() -> float:
    """Return the CPU time of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare(recipe: Path, processes: int, environment: dict[str, str], kill_after: float | None) -> tuple[float, ...]:
    """Run the command; return seconds, CPU seconds, and peaks of a process: resident and anonymous memory, in MB."""
    command = [sys.executable, "-m", "hmt_ds", "prepare", str(recipe), "--processes", str(processes)]
    started, used, peaks = time.monotonic(), cpu_seconds(), (0.0, 0.0)
    run = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    while run.poll() is None:
        peaks = tuple(map(max, peaks, memory_of(run.pid)))
        if kill_after is not None and time.monotonic() - started > kill_after:
            run.send_signal(signal.SIGKILL)
        time.sleep(TICK)
    assert run.stdout is not None
    print(run.stdout.read(), end="")
    return time.monotonic() - started, cpu_seconds() - used, *peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mb", type=float, default=100)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--suffix", choices=("jsonl", "txt"), default="jsonl", help="txt for one document")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--tokenizer", choices=("words", "pieces"), default="words")
    parser.add_argument("--threads", choices=("true", "false"), help="the tokenizer's own threads in each process")
    parser.add_argument("--kill-after", type=float, help="SIGKILL after these seconds, then once more to the end")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"text-{options.mb:g}-{options.documents}.{options.suffix}"
    if not source.exists():
        with source.open("w") as file:
            for text in documents(options.mb, options.documents):
                file.write(text if options.suffix == "txt" else json.dumps({"text": text}) + "\n")
    tokenizer = folder / options.tokenizer
    if not tokenizer.exists():
        make_tokenizer(tokenizer, options.tokenizer)
    recipe = write_recipe(folder, source, tokenizer)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    environment = {"HF_HOME": str(folder / "hf")}
    if options.threads:
        environment["TOKENIZERS_PARALLELISM"] = options.threads
    for kill_after in (options.kill_after, None) if options.kill_after else (None,):
        seconds, cpu, resident, anonymous = prepare(recipe, options.processes, environment, kill_after)
        shards = len(list((folder / "cache").glob("*.sha256")))
        print(f"{seconds:.1f} s, {cpu:.1f} CPU s, {shards} shards")
        print(f"peak of a process: {resident:,.0f} MB resident, {anonymous:,.0f} MB anonymous")


if __name__ == "__main__":
    main()
