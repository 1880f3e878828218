"""A converted run has the chat template that it was trained with, and stops where an answer ends."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_templates import TEMPLATES, chat_tokenizer
from transformers import GenerationConfig

from hmt_ds.config.data_section import Data
from hmt_ds.conversion.trained_chat import stop_at_answers, tokenizer_of_run
from hmt_ds.data.chat import end_of_answers


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


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("ends", [None, 3, [3, 4]])
def test_generation_stops_at_the_end_of_an_answer(name, ends):
    tokenizer = chat_tokenizer(name)
    end = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[name]
    usual = [tokenizer.eos_token_id] if ends is None else ends if isinstance(ends, list) else [ends]
    for format, expected in ("messages", [*usual, tokenizer.convert_tokens_to_ids(end)]), ("text", ends):
        data = Data.model_validate({"train": {"source": "a.jsonl", "format": format}})
        found = stop_at_answers(GenerationConfig(eos_token_id=ends), tokenizer, SimpleNamespace(data=data)).eos_token_id
        if tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(end) and ends is None:
            expected = ends  # generation stops there anyway
        assert found == expected


def test_templates_without_an_end():
    """A template that ends answers with text, and one that refuses everything."""
    for template in (
        "{% for message in messages %}{{ message['content'] + '.' }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ):
        tokenizer = chat_tokenizer("mistral")
        tokenizer.chat_template = template
        assert end_of_answers(tokenizer) is None
