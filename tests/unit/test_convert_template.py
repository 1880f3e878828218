"""A converted run's tokenizer has the chat template that the run was trained with."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_templates import chat_tokenizer

from hmt_ds.config.data_section import Data
from hmt_ds.conversion.from_run import tokenizer_of_run


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tokenizer with a template, and another template in a file."""
    chat_tokenizer("chatml").save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    return tmp_path


def template_of(folder: Path, *sources: dict[str, str], what: str = "model") -> tuple[str | None, list[str]]:
    """The template of the converted tokenizer, and the notes."""
    data = Data.model_validate({"train": [{"source": "a.jsonl", **source} for source in sources]})
    recipe = SimpleNamespace(data=data, model=SimpleNamespace(source={}, tokenizer=str(folder / "tokenizer")))
    notes: list[str] = []
    tokenizer = tokenizer_of_run(recipe, what, notes)
    return tokenizer and tokenizer.chat_template, notes


def test_the_recipe_s_template_is_kept(folder):
    own, usual = str(folder / "own.jinja"), chat_tokenizer("chatml").chat_template
    chat = {"format": "messages", "chat_template": own}
    assert template_of(folder, chat, {"format": "text"}) == ("{{ messages }}", [])
    assert template_of(folder, {"format": "messages"}) == template_of(folder, {"format": "text"}) == (usual, [])
    assert template_of(folder, chat, {"format": "messages"}) == (usual, [])  # which of both, nobody can say
    assert template_of(folder, chat, what="memory") == (None, [])


def test_a_template_that_is_gone_is_a_note(folder):
    chat = {"format": "messages", "chat_template": str(folder / "gone.jinja")}
    template, notes = template_of(folder, chat)
    assert template == chat_tokenizer("chatml").chat_template
    assert len(notes) == 1 and notes[0].startswith("warning: the tokenizer in the folder keeps its own chat template:")
