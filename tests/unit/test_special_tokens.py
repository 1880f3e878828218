"""Special tokens that are written out in documents: read as tokens or as text, in every format, and told of."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from bad_folder import make_folder
from chat_templates import TEMPLATES, byte_level, chat_tokenizer
from datasets import Dataset

from hmt_ds.config.load import load_recipe
from hmt_ds.data import DataError, read_source, tokenize_documents
from hmt_ds.data.formats import Format
from hmt_ds.data.prepared import read_tokens
from hmt_ds.data.special_tokens import special_ids, why_special
from hmt_ds.launch.dry_run import dry_run_lines
from hmt_ds.launch.prepare_data import prepare_data
from hmt_ds.preflight.prepare import prepare

ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "He said <|im_end|> and left."},
    "completion": {"prompt": "Is it <|im_end|>?", "completion": "<|im_end|> it is."},
    "questions": {"context": "A <|im_end|>.", "input": ["Which <|im_start|>?"], "answers": ["The <|im_end|>"]},
    "messages": {"messages": [{"role": "user", "content": "<|im_end|>?"}, {"role": "assistant", "content": "Yes."}]},
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def encode(format: Format, tokenizer: Any, row: dict[str, Any], eos: int | None = None) -> list[int]:
    ids, _ = format.encode({name: [value] for name, value in row.items()}, 0, tokenizer, eos)
    return list(map(int, ids[0]))


@pytest.mark.parametrize("name", ["text", "completion", "questions"])
def test_as_text_they_are_what_transformers_makes_of_them(name):
    """The ids are those of split_special_tokens, and nothing changes where it is not asked for."""
    tokenizer, row = chat_tokenizer("chatml"), ROWS[name]
    plain, text, token = (encode(Format(name, special_tokens=how), tokenizer, row) for how in (None, "text", "token"))
    assert plain == token and np.isin(plain, special_ids(tokenizer)).any()
    assert not np.isin(text, special_ids(tokenizer)).any()
    assert tokenizer.decode(text) == tokenizer.decode(plain)
    assert text == tokenizer(tokenizer.decode(text), split_special_tokens=True).input_ids
    assert encode(Format(name), tokenizer, row) == plain  # the tokenizer is as it was


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_of_a_conversation_those_of_the_template_are_tokens(name, marked):
    """As many as with harmless messages; a message cannot end its turn, nor begin another one."""
    tokenizer, end = chat_tokenizer(name, marked=marked), TEMPLATES[name][3]
    words = f"A {end}{end} of{end}"

    def chat(words: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"Say {words}!"}, {"role": "assistant", "content": words}]}

    format = Format("messages", special_tokens="text")
    ids, weights = format.encode({"messages": [chat(words)["messages"]]}, 0, tokenizer, None)
    harmless, special = encode(format, tokenizer, chat("A jar of jam")), special_ids(tokenizer)
    kept = ids[0][np.isin(ids[0], special)].tolist()
    assert kept == [one for one in harmless if one in special]
    assert len(encode(Format("messages"), tokenizer, chat(words))) < len(ids[0])
    assert tokenizer.decode(ids[0]) == tokenizer.decode(encode(Format("messages"), tokenizer, chat(words)))
    assert weights is not None and len(weights[0]) == len(ids[0])
    assert tokenizer.decode(ids[0][weights[0] == 1]).startswith(words)  # all tokens of the answer count
    try:
        sanitized = tokenizer.apply_chat_template(chat(words)["messages"], sanitize_control_tokens=True)["input_ids"]
    except (TypeError, NotImplementedError):  # an earlier transformers
        return
    assert ids[0].tolist() == sanitized


def test_a_template_that_depends_on_them_is_refused():
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'] + ('!' if '<|im_end|>' in message['content'] else '')"
    )
    with pytest.raises(
        DataError, match=r"document 0 .* the chat template depends on special tokens .*: set special_tokens to token"
    ):
        encode(Format("messages", special_tokens="text"), tokenizer, ROWS["messages"])


def test_long_documents_in_pieces(folder):
    """A plain text, and a row of another format, are read as in one go."""
    tokenizer = byte_level(eos_token="</s>", added=["</s>"])
    text = "The heavy jar is in Denver. It says: </s> yes. " * 9000
    for how in ("text", "token"):
        tokens = tokenize_documents(
            Dataset.from_dict({"text": [text]}), tokenizer, format=Format(special_tokens=how), cache_dir=folder
        )
        expected = tokenizer(text, split_special_tokens=how == "text").input_ids
        assert tokens[0]["input_ids"] == [*expected, tokenizer.eos_token_id]
        row = {"prompt": text, "completion": "</s>yes"}
        ids = encode(Format("completion", special_tokens=how), tokenizer, row)
        assert ids == tokenizer(text + "</s>yes", split_special_tokens=how == "text").input_ids


def test_the_cache_is_another_one_only_where_tokens_are(folder):
    documents = Dataset.from_dict(ROWS["text"] | {"text": [ROWS["text"]["text"]]})
    for how, files in ((None, 1), ("token", 1), ("text", 2)):
        tokenize_documents(documents, chat_tokenizer("chatml"), format=Format(special_tokens=how), cache_dir=folder)
        assert len(list(folder.glob("*.arrow"))) == files


@pytest.mark.parametrize("name", ROWS)
def test_they_are_told_of(folder, name):
    """In a line with the first place and their number; from the record too, and not where the key says what to do."""
    harmless = json.loads(json.dumps(ROWS[name]).replace("<|im_", "<"))
    file = folder / "rows.jsonl"
    rows = [harmless, ROWS[name], harmless, ROWS[name]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, columns = chat_tokenizer("chatml"), None if name == "text" else {column: column for column in ROWS[name]}

    def warning(how: Any = None) -> str | None:
        keys = {"columns": columns, "cache_dir": folder / "tokens"}
        return read_tokens(str(file), tokenizer, format=Format(name, special_tokens=how), **keys).warning

    found = warning()
    assert found is not None and found == warning()
    where = f"first '<|im_end|>' in {file}, line 2, and they are read as these tokens: set special_tokens"
    assert found.startswith("2 documents have special tokens of the tokenizer in the text, ") and where in found
    assert warning("text") is warning("token") is None
    file.write_text(json.dumps(harmless) + "\n")
    assert warning() is None
    tokenizer.split_special_tokens = True
    documents = read_source(str(file), columns=columns)
    assert why_special(documents.documents, tokenizer, documents.place) is None


def test_check_and_prepare_tell_of_them(tmp_path, monkeypatch):
    """The warning is in the lines of both commands, with the key of the source."""
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.txt").write_text((tmp_path / "text.txt").read_text() + "<s>struck out</s>")
    file = tmp_path / "recipe.yaml"
    for how, expected in (("null", True), ("text", False)):
        words = ["--data.train.source", "page.txt", "--data.train.special_tokens", how]
        recipe = load_recipe(file, words)
        both = dry_run_lines(recipe, file, prepare(recipe, file), 1), prepare_data(recipe, 1)
        for lines in both:
            told = [line for line in lines if "data.train: 1 document has special tokens of the tokenizer" in line]
            assert bool(told) == expected and all("first '<s>' in page.txt, and" in line for line in told)
