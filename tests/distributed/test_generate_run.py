"""`hmt-ds generate` of runs as they were distributed: the text of the folder that each is converted to."""

from pathlib import Path

import pytest
from commands import run_command
from tiny_recipe import make_materials, train, write_recipe

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
