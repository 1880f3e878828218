"""A training run of a few seconds: a tiny GPT-2 with dropout, pages of a novel, and its own tokenizer.

`start` and `launch` go through `hmt-ds train` and DeepSpeed's launcher; `train` starts the same ranks alone, as srun
does, in a fifth of the time.
"""

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from ranks import PROJECT, cpu_environment, start_ranks, wait_for

from hmt_ds.data import train_sentencepiece
from hmt_ds.reporting.metrics import read_metrics

STEPS = 12
EVERY = 4  # steps between checkpoints
VOCABULARY = 400
# Creating a DeepSpeed engine imports torch's compiler, which takes a second; tiny runs compile nothing
NO_COMPILER = {"TORCHDYNAMO_DISABLE": "1"}
MARK = "HMT_DS_TESTED_RUN"  # environment variable of a run's processes: its output folder


def make_materials(folder: Path) -> None:
    """Write a text of four documents of different lengths, and a tokenizer."""
    novel = (PROJECT / "hmt_ds/data/samples/prideprejudice.txt").read_text(encoding="utf-8")
    chapters = re.split(r"^(?=Chapter \d+)", novel, flags=re.MULTILINE)[1:5]
    (folder / "text.txt").write_text("\n".join(c[:n] for c, n in zip(chapters, (1500, 300, 2500, 900), strict=True)))
    train_sentencepiece([folder / "text.txt"], folder / "tokenizer", VOCABULARY)


def write_recipe(folder: Path, stage: int = 3) -> Path:
    """Write a recipe for these materials, with dropout, so that a wrong random state is detected."""
    backbone = {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2}
    backbone |= {
        "n_positions": 64,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    source = {"source": str(folder / "text.txt"), "separator": "^Chapter"}
    recipe: dict[str, Any] = {
        "model": {"source": backbone, "tokenizer": str(folder / "tokenizer"), "precision": "fp32"},
        "memory": {"segment_length": 16, "sensory_tokens": 4, "cached_memories": 5},
        "data": {"train": source, "cache_dir": str(folder / "cache")},
        "training": {"output": str(folder / "run"), "steps": STEPS, "bptt_depth": 3, "batch_size": 2},
        "optimizer": {"lr": 1e-3},
        "schedule": {"params": {"warmup_num_steps": 3}},
        "deepspeed": f"ds_configs/zero{stage}.json",
        "checkpoint": {"every": EVERY},
        "logging": {"csv": True},
    }
    file = folder / f"zero{stage}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


@contextmanager
def start(
    recipe: Path, output: Path, *more: str, ranks: int = 2, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run `hmt-ds train` with a mark in its environment; all of its processes end with the block."""
    command = [sys.executable, "-m", "hmt_ds.cli", "train", str(recipe), "--ranks", str(ranks)]
    process = subprocess.Popen(
        [*command, "--training.output", str(output), *more],
        env=cpu_environment(**{MARK: str(output)}, **NO_COMPILER, **environment),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        for one in processes_of(output):
            with_luck(one.kill)
        process.wait()


def processes_of(output: Path) -> list[psutil.Process]:
    """All processes of a run, including orphans."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if one.environ().get(MARK) == str(output):
                found.append(one)
    return found


def with_luck(action: Any) -> None:
    """Call an action on a process that may have ended already."""
    with suppress(psutil.NoSuchProcess):
        action()


def command_of(output: Path) -> list[psutil.Process]:
    """The process of `hmt-ds` itself."""
    return [one for one in processes_of(output) if runs(one, "hmt_ds.cli") and not is_launcher(one)]


def ranks_of(output: Path) -> list[psutil.Process]:
    """The processes that train."""
    return [one for one in processes_of(output) if runs(one, "hmt_ds.train")]


def launchers_of(output: Path) -> list[psutil.Process]:
    """DeepSpeed's launcher process, the parent of the ranks."""
    return [one for one in processes_of(output) if is_launcher(one)]


def is_launcher(process: psutil.Process) -> bool:
    """Whether a process is DeepSpeed's launcher, which `hmt-ds` forks from itself."""
    try:
        return runs(process, "hmt_ds.cli") and (above := process.parent()) is not None and runs(above, "hmt_ds.cli")
    except psutil.Error:
        return False


def runs(process: psutil.Process, module: str) -> bool:
    """Whether a process was started as `python -m module`."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return "-m" in words and words[words.index("-m") + 1] == module


def signal_at(
    process: "subprocess.Popen[str] | RanksAlone",
    targets: Any,
    number: int,
    output: Path,
    step: int,
    seconds: float = 120,
) -> None:
    """Send a signal to some of a run's processes as soon as it has logged a step, within some seconds of its start."""
    log, began = output / "metrics.jsonl", time.time()  # an older log belongs to an earlier start
    while not (log.exists() and log.stat().st_mtime > began and any(r["step"] >= step for r in read_metrics(log))):
        assert process.poll() is None and time.time() < began + seconds, process.communicate()[0]
        time.sleep(0.01)
    for target in targets(output):
        with_luck(lambda one=target: one.send_signal(number))


def finish(process: "subprocess.Popen[str] | RanksAlone", timeout: float = 120) -> tuple[int, str]:
    """Wait for a run; return its exit code and output."""
    try:
        printed = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not ended after {timeout} s") from None
    return process.returncode, printed


def launch(recipe: Path, output: Path, *more: str, **options: Any) -> tuple[int, str]:
    """Run `hmt-ds train` to the end."""
    with start(recipe, output, *more, **options) as process:
        return finish(process)


def train(recipe: Path, output: Path, *more: str, ranks: int = 2, **environment: str) -> tuple[int, str]:
    """Run the ranks to the end; return the first exit code that is not 0, and their output."""
    return run_module("hmt_ds.train", str(recipe), "--training.output", str(output), *more, ranks=ranks, **environment)


def run_module(module: str, *words: str, ranks: int = 2, **environment: str) -> tuple[int, str]:
    """Run ``python -m MODULE WORDS`` as ranks; return the first exit code that is not 0, and all output."""
    return run_words("-m", module, *words, ranks=ranks, **environment)


def run_words(*words: str, ranks: int = 2, timeout: float = 120, **environment: str) -> tuple[int, str]:
    """Run ``python WORDS`` as ranks; return the first exit code that is not 0, and all output."""
    with start_alone(*words, ranks=ranks, **environment) as run:
        return finish(run, timeout)


def train_alone(recipe: Path, output: Path, *more: str, **environment: str) -> AbstractContextManager["RanksAlone"]:
    """Start a training run's ranks, without a launcher."""
    return start_alone("-m", "hmt_ds.train", str(recipe), "--training.output", str(output), *more, **environment)


def kill_at(recipe: Path, output: Path, *more: str, step: int) -> None:
    """Train until a step is in the log, then kill all ranks."""
    with train_alone(recipe, output, *more) as run:
        signal_at(run, lambda _: run.ranks, signal.SIGKILL, output, step)


class RanksAlone:
    """Ranks without a launcher, with the methods of `Popen` that `signal_at` and `finish` use."""

    def __init__(self, words: list[str], logs: list[Path], environment: dict[str, str]):
        self.logs, self.ranks = logs, start_ranks(words, logs, environment)

    def poll(self) -> int | None:
        """Return the first exit code that is not 0, None while a rank runs."""
        codes = [rank.poll() for rank in self.ranks]
        return None if None in codes else self.returncode

    @property
    def returncode(self) -> int:
        """The first exit code that is not 0."""
        return next((rank.returncode for rank in self.ranks if rank.returncode), 0)

    def communicate(self, timeout: float = 0) -> tuple[str, None]:
        """Wait for all ranks and return their output. After the timeout they are killed, and the exit code is -9."""
        wait_for(self.ranks, timeout, patience=30)
        return "".join(log.read_text() for log in self.logs), None


@contextmanager
def start_alone(*words: str, ranks: int = 2, **environment: str) -> Iterator[RanksAlone]:
    """Start ``python WORDS`` as ranks, without a launcher; none outlives the block."""
    with tempfile.TemporaryDirectory() as folder:
        run = RanksAlone(list(words), [Path(folder, f"rank_{rank}") for rank in range(ranks)], environment)
        try:
            yield run
        finally:
            for rank in run.ranks:
                rank.kill()
                rank.wait()
