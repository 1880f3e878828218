"""Ctrl-C during an answer of `hmt-ds chat` and `generate`, on a pseudo-terminal."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_generate_command import write_tokenizer
from tiny import LLAMA
from tiny_folder import load_tiny, write_tiny
from transformers import PreTrainedTokenizerFast

from hmt_ds import cli
from hmt_ds.generation.interrupt import UntilInterrupted
from hmt_ds.generation.memory_file import load_memory
from hmt_ds.inference.segment_cache import SegmentCache

PATIENCE = 120  # seconds
CTRL_C = b"\x03"
ENDLESS = ["--max-new-tokens", "1000000", "--generation.suppress_tokens", "[0, 1]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A converted folder with a tokenizer; no test changes it."""
    path = tmp_path_factory.mktemp("interrupted") / "hf"
    backbone = LLAMA | {"vocab_size": 400, "eos_token_id": 1, "bos_token_id": 0}
    write_tokenizer(write_tiny(path, backbone, interface="adapted", recalled_memories=2))
    return path


class Terminal:
    """A pseudo-terminal with a program: `said` is everything that it printed."""

    def __init__(self, *words: str):
        self.ours, theirs = pty.openpty()
        options = termios.tcgetattr(theirs)
        options[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, options)

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes SIGINT

        self.program = subprocess.Popen(
            [sys.executable, "-m", "hmt_ds", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=take_terminal,
            env=os.environ | {"DS_ACCELERATOR": "cpu", "TERM": "dumb"},
        )
        os.close(theirs)
        self.said = b""

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def wait_for(self, more: int, end: bytes = b"") -> None:
        """Wait until the program has printed some more bytes, the last ones `end`."""
        before, until = len(self.said), time.monotonic() + PATIENCE
        while len(self.said) < before + more or not self.said.endswith(end):
            assert time.monotonic() < until, self.said
            if select.select([self.ours], [], [], 1)[0]:
                self.said += os.read(self.ours, 4096)

    def code(self, keys: bytes = b"") -> int:
        """Type keys until the program ends, and return its exit code.

        Once may not do: Python loses a Ctrl-C between printing a prompt and reading the line.
        """
        until = time.monotonic() + PATIENCE
        try:
            while True:
                assert time.monotonic() < until, self.said
                self.type(keys)
                while select.select([self.ours], [], [], 20)[0]:  # a second one while it ends would kill it
                    self.said += os.read(self.ours, 4096)
        except OSError:  # the other end is closed
            pass
        return self.program.wait(PATIENCE)


@contextmanager
def terminal(*words: str) -> Iterator[Terminal]:
    """Run `hmt-ds WORDS` on a pseudo-terminal."""
    running = Terminal(*words)
    try:
        yield running
    finally:
        running.program.kill()
        running.program.wait()
        os.close(running.ours)


def test_chat_keeps_what_was_said(folder, tmp_path):
    """The memory at the end is that of the line and of all tokens of the answer that was cut short."""
    book = tmp_path / "talk.memory"
    with terminal("chat", str(folder), "--save-memory", str(book), *ENDLESS) as shell:
        shell.wait_for(2, b"> ")
        shell.type(b"Anne\n")
        shell.wait_for(40)
        shell.type(CTRL_C)
        shell.wait_for(2, b"\r\n> ")
        assert shell.code(CTRL_C) == 130
    assert b"Traceback" not in shell.said and f"memory      {book} (".encode() in shell.said
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(folder), load_tiny(folder, dtype=torch.float32)
    saved = load_memory(book, model, tokenizer)
    assert saved.rows is not None
    ids = tokenizer("Anne\n", return_tensors="pt").input_ids
    length = saved.rows.closed[0] * model.hmt.settings.segment_length + saved.rows.lengths[0]
    assert length > ids.shape[1] + 5
    whole = model.generate(ids, max_length=length, suppress_tokens=[0, 1], pad_token_id=1, eos_token_id=None)
    again = SegmentCache()
    with torch.no_grad():
        model(whole, past_key_values=again)
    assert again.rows is not None and torch.equal(saved.rows.tokens, again.rows.tokens)
    torch.testing.assert_close(saved.rows.state.memories, again.rows.state.memories)


def test_chat_goes_on_with_the_next_line(folder):
    """Ctrl-C again and again ends the answers, then the program."""
    with terminal("chat", str(folder), *ENDLESS) as shell:
        shell.wait_for(2, b"> ")
        for line in (b"Anne\n", b"Bath\n"):
            shell.type(line)
            shell.wait_for(20)
            shell.type(CTRL_C)
            shell.wait_for(2, b"\r\n> ")
        shell.type(b"\x04")  # the end of the input
        assert shell.code() == 0 and b"Traceback" not in shell.said


def test_generate_prints_what_it_has(folder):
    with terminal("generate", str(folder), "--prompt", "Anne", *ENDLESS) as shell:
        shell.wait_for(40)
        shell.type(CTRL_C)
        assert shell.code() == 130 and b"Traceback" not in shell.said


def test_generate_of_several_prompts(folder, monkeypatch, capsys):
    """The batch that is cut short is printed, the next one is not begun."""
    after = iter(range(5))

    def press(self: UntilInterrupted, ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        if next(after, None) is None and not self.hit:
            signal.raise_signal(signal.SIGINT)
        return torch.full((len(ids),), self.hit)

    monkeypatch.setattr(UntilInterrupted, "__call__", press)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    prompts = [word for name in ("Anne", "Bath", "Lyme") for word in ("--prompt", name)]
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "generate", str(folder), *prompts, "--batch", "2", *ENDLESS])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert end.value.code == 130 and "--- Anne" in said and "--- Bath" in said and "--- Lyme" not in said


def test_the_second_raises():
    with pytest.raises(KeyboardInterrupt), UntilInterrupted() as until:
        signal.raise_signal(signal.SIGINT)
        ends = until(torch.zeros(2, 3), torch.zeros(2))
        assert until.hit and ends.tolist() == [True, True]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
