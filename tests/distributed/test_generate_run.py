"""`hmt-ds generate` of runs as they were distributed: the text of the folder that each is converted to."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_command
from ranks import PROJECT, cpu_environment
from tiny_recipe import NO_COMPILER, make_materials, run_words, train, write_recipe

SHORT = ("--training.steps", "3", "--optimizer.lr", "0.05")
LAYOUTS = {
    "ZeRO-3": (3, ()),
    "pipeline": (1, ("--pipeline.stages", "2")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Text and tokenizer of all runs."""
    folder = tmp_path_factory.mktemp("generate")
    make_materials(folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_and_its_folder_write_the_same(folder, layout):
    """From the run, one checkpoint and the folder; the memory that a run saved is the folder's, too."""
    stage, more = LAYOUTS[layout]
    run, converted, book = folder / layout, folder / f"{layout}_hf", folder / f"{layout}.memory"
    code, printed = train(write_recipe(folder, stage), run, *SHORT, *more)
    assert code == 0, printed
    assert run_command("convert", str(run), str(converted))[0] == 0
    words = ["--document", str(folder / "text.txt"), "--prompt", "They were", "--max-new-tokens", "40"]
    sources = [run, next((run / "checkpoints").glob("step*")), converted]
    found = [run_command("generate", str(source), *words) for source in sources]
    assert found[0][0] == 0 and found[0] == found[1] == found[2] and len(found[0][1].strip()) > 20, found
    code, printed = run_command("generate", str(run), *words[:2], "--save-memory", str(book))
    assert code == 0, printed
    assert run_command("generate", str(converted), "--memory", str(book), *words[2:]) == found[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_that_share_the_weights_write_the_same(folder, layout):
    """One prompt that is streamed, several of different lengths, samples and beams, behind a document; each rank has
    half of the weights."""
    run = folder / layout
    several = ["--prompt=-- They", "--prompt", "Mr. Bennet was so odd", "--max-new-tokens", "30"]
    for words in (
        ["--document", str(folder / "text.txt"), "--prompt", "They were", "--max-new-tokens", "40"],
        [*several, "--generation.temperature", "0.8", "--seed", "3"],
        [*several, "--generation.num_beams", "2", "--dtype", "bf16"],
    ):
        code, alone = run_command("generate", str(run), *words)
        assert code == 0 and len(alone) > 30, alone
        code, printed = run_command("generate", str(run), *words, "--ranks", "2")
        assert code == 0 and without_log(printed) == alone, printed
    code, printed = run_words(str(Path(__file__).with_name("shared_weights.py")), str(run))
    assert code == 0 and printed.count("share 0.50, gathered 0\n") == 2, printed


def without_log(printed: str) -> str:
    """What a command has printed besides its log."""
    return "".join(line for line in printed.splitlines(keepends=True) if " rank 0 INFO " not in line)


def test_what_ranks_cannot_share(folder):
    """One line each, and nothing hangs."""
    run, converted, words = folder / "ZeRO-3", folder / "ZeRO-3_hf", ["--prompt", "a", "--ranks", "2"]
    for source, more, said in (
        (converted, [], f"--ranks: {converted} is not a run: name a run, or leave --ranks out"),
        (run, ["--generation.max_time", "1"], "generation.max_time: each rank has its own clock"),
        (run, ["--generation.no_such", "1"], "generation.no_such: unknown setting"),
        (run, ["--document", str(folder / "text.txt"), "--save-memory", str(folder / "new")], "memory files need one"),
        (folder / "none", [], f"{folder / 'none'}"),
    ):
        code, printed = run_command("generate", str(source), *words, *more)
        assert code == 2 and said in printed, printed
        assert "Traceback" not in printed and printed.count("error:") == 1, printed


def test_ctrl_c_ends_the_answer_on_all_ranks(folder):
    """The command says what was written, and exits with 130."""
    words = ("generate", str(folder / "ZeRO-3"), "--prompt", "They", "--ranks", "2", "--max-new-tokens", "1000000")
    words += ("--generation.suppress_tokens", "[1, 2]", "--generation.temperature", "2.0")  # it writes spaces
    command = subprocess.Popen(
        [sys.executable, "-u", "-m", "hmt_ds.cli", *words],
        env=cpu_environment(**NO_COMPILER),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert command.stdout is not None and len(command.stdout.read(20)) == 20
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=120)
        assert command.returncode == 130
    finally:
        command.kill()
