"""Formats of documents: token ids, and which tokens are answers, token by token; every error line."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pytest
from chat_templates import TEMPLATES, byte_level, chat_tokenizer
from datasets import Dataset
from formatted import CHAT, answers_of, encode
from transformers import PreTrainedTokenizerFast

from hmt_ds.data import DataError, load_documents, load_tokenizer, pieces, tokenize_documents, train_sentencepiece
from hmt_ds.data.formats import Format


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> PreTrainedTokenizerFast:
    """A tokenizer that puts blanks in front of words and spells what it does not know in bytes, as Llama 2."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("It says: yes, yes. Question: Where is it? Answer: in Denver.\n" * 20)
    return load_tokenizer(str(train_sentencepiece([folder / "text.txt"], folder / "trained", 300)))


@pytest.mark.parametrize("prompt", ["It says: ", "It says:", "", "It says \N{SNOWMAN}"])
@pytest.mark.parametrize("answer", ["yes, yes", " yes", "\N{SNOWMAN} yes\n", "y"])
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_completions_across_merges(sentencepiece, prompt, answer, kind):
    """A token that reaches into the answer counts, in front of it or not; the rest of the prompt does not."""
    tokenizer = sentencepiece if kind == "sentencepiece" else byte_level(eos_token="</s>", added=["</s>"])
    ids, answers = encode(Format("completion"), tokenizer, tokenizer.eos_token_id, prompt=prompt, completion=answer)
    assert ids == [*tokenizer(prompt + answer).input_ids, tokenizer.eos_token_id]
    first = answers.index(True)
    assert all(answers[first:])
    # without the first token of the answer the answer is not whole, with it it is
    text = tokenizer.decode(ids[first:-1])
    assert answer.strip() in text and len(text) <= len(answer) + 1
    if prompt:
        assert answer.strip() not in tokenizer.decode(ids[first + 1 : -1])
    else:  # all but BOS; a blank that the tokenizer puts in front is part of the answer
        assert first == (kind == "sentencepiece")


def test_a_token_of_both_prompt_and_answer():
    """The blank at the end of the prompt is in one token with the answer's first word."""
    tokenizer = byte_level(eos_token="</s>", added=["</s>"])
    ids, answers = encode(Format("completion"), tokenizer, None, prompt="It says: ", completion="yes")
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[-1] == "\u0120yes" and answers == [False] * (len(ids) - 1) + [True]


def test_questions_on_one_document(sentencepiece):
    """Each question and its answer follow the document, in the words of `hmt-ds evaluate --questions`."""
    tokenizer, eos = sentencepiece, sentencepiece.eos_token_id
    row = {"context": "It is in Denver.", "input": "Where is it?", "answers": ["in Denver", "Denver"]}
    ids, answers = encode(Format("questions"), tokenizer, eos, **row)
    asked = "It is in Denver. Question: Where is it? Answer:"
    assert ids == [*tokenizer(f"{asked} in Denver").input_ids, eos]
    assert ids[: answers.index(True)] == tokenizer(asked).input_ids and all(answers[answers.index(True) :])
    more = {"context": row["context"], "input": ["Where is it?", "Is it?"], "answers": [["in Denver"], "yes"]}
    two, answered = encode(Format("questions"), tokenizer, eos, **more)
    second = tokenizer(" Question: Is it? Answer: yes", add_special_tokens=False).input_ids
    assert two == [*ids, *second, eos] and answered[: len(ids)] == answers
    assert [text.strip() for text in answers_of(tokenizer, two, answered)] == ["in Denver</s>", "yes</s>"]
    without, _ = encode(Format("questions"), tokenizer, eos, **row | {"input": None})
    assert without == [*tokenizer("It is in Denver. Answer: in Denver").input_ids, eos]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_long_rows_are_tokenized_in_pieces(sentencepiece, kind, monkeypatch):
    """Token ids and answers are those of the whole, wherever borders of pieces, characters and answers are."""
    tokenizer = sentencepiece if kind == "sentencepiece" else chat_tokenizer("chatml")
    tokenizer.chat_template = TEMPLATES["chatml"][0]
    long = "It is in Denver \N{SNOWMAN}, yes. " * 500
    chat = [CHAT[0], CHAT[1] | {"content": long}, CHAT[2] | {"content": long + "?"}, CHAT[3]]
    row = {"context": long, "input": ["Where?", long], "answers": [[long], "yes"]}
    lengths, found, real = set(), list[Any](), pieces.encode_pieces
    monkeypatch.setattr(pieces, "PIECE", 3000)
    monkeypatch.setattr(pieces, "OVERLAP", 800)
    monkeypatch.setattr(pieces, "AT_ONCE", 7000)
    monkeypatch.setattr(
        pieces,
        "encode_pieces",
        lambda text, parts, *more, **kw: lengths.add(len(parts)) or real(text, parts, *more, **kw),
    )
    for most in (10**9, 5000):
        monkeypatch.setattr("hmt_ds.data.parts.LONG", most)
        found.append(
            [
                encode(Format("questions"), tokenizer, tokenizer.eos_token_id, **row),
                encode(Format("messages", 0.5), tokenizer, messages=chat),
            ]
        )
    assert found[0] == found[1] and lengths == {1, 2}
    tokenizer.chat_template = None


def test_plain_text_is_encoded_as_ever(sentencepiece):
    texts = ["It is in Denver.", ""]
    ids, weights = Format().encode({"text": texts}, 0, sentencepiece, sentencepiece.eos_token_id)
    assert ids == [[*sentencepiece(text).input_ids, sentencepiece.eos_token_id] for text in texts] and weights is None


def test_prompts_of_full_weight_need_no_weights(sentencepiece):
    ids, weights = Format("completion", 1.0).encode({"prompt": ["a"], "completion": ["b"]}, 0, sentencepiece, None)
    assert weights is None and len(ids) == 1


ROLES = "system, developer, user, assistant, tool"
BAD_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("completion", {"prompt": None, "completion": "b"}, "column 'prompt' is missing"),
    ("completion", {"prompt": "a", "completion": " \n"}, "column 'completion' is blank"),
    ("completion", {"prompt": ["a"], "completion": "b"}, "column 'prompt' holds list, but must hold text"),
    (
        "completion",
        {"prompt": "a", "completion": datetime(2024, 1, 1)},
        "column 'completion' holds datetime, but must hold text: JSON's dates are read as times",
    ),
    ("questions", {"context": None, "input": "q", "answers": ["a"]}, "column 'context' is missing"),
    ("questions", {"context": "c", "input": "q", "answers": []}, "column 'answers' is blank"),
    ("questions", {"context": "c", "input": "q", "answers": None}, "column 'answers' is missing"),
    ("questions", {"context": "c", "input": "q", "answers": [""]}, "column 'answers' is blank"),
    (
        "questions",
        {"context": "c", "input": ["q", "r"], "answers": ["a"]},
        "column input has 2 questions, and column answers has 1",
    ),
    ("questions", {"context": "c", "input": [], "answers": []}, "column input has 0 questions"),
    ("messages", {"messages": []}, "messages must be a list of at least one message"),
    ("messages", {"messages": "hello"}, "messages must be a list of at least one message"),
    ("messages", {"messages": ["hello"]}, "message 1 must be a mapping with role and content, not 'hello'"),
    ("messages", {"messages": CHAT[:1]}, "messages has no answer: the roles are user"),
    ("messages", {"messages": CHAT[1:2]}, "message 1 has the role assistant"),
    ("messages", {"messages": [{"role": "bot", "content": "a"}]}, f"message 1 has the role 'bot'; use one of {ROLES}"),
    (
        "messages",
        {"messages": [*CHAT[:1], {"role": "assistant", "content": ""}]},
        "message 2 of role assistant is empty",
    ),
    ("messages", {"messages": [{"role": "user"}, CHAT[1]]}, "message 1 of role user needs text in content, not None"),
    (
        "messages",
        {"messages": [CHAT[0], CHAT[0], CHAT[1]]},
        "the chat template refuses the conversation: Conversation roles must",
    ),
]


@pytest.mark.parametrize(("name", "row", "line"), BAD_ROWS, ids=[line for _, _, line in BAD_ROWS])
def test_a_bad_row_is_a_line_with_its_number(name, row, line):
    """Through the cache of tokens too, where documents come in batches."""
    good = {
        "completion": {"prompt": "a", "completion": "b"},
        "questions": {"context": "c", "input": "q", "answers": ["a"]},
        "messages": {"messages": CHAT},
    }[name]
    batch = {column: [*[good[column]] * 2, row[column]] for column in good}
    with pytest.raises(DataError) as caught:
        Format(name).encode(batch, 16, chat_tokenizer("mistral"), None)
    assert str(caught.value).startswith(f"document 18 (the first is 0): {line}")
    assert "\n" not in str(caught.value)


def test_tokenizers_that_do_not_fit():
    with pytest.raises(DataError, match="the tokenizer has no chat template; set chat_template to a file with one"):
        Format("messages").check(byte_level())
    slow = type("Slow", (), {"is_fast": False})()
    with pytest.raises(DataError, match=re.escape("needs a fast tokenizer (with a tokenizer.json)")):
        Format("completion").check(slow)
    Format().check(slow)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def tokens_of(folder: Path, rows: list[dict[str, Any]], format: Format, columns: dict[str, str]) -> Dataset:
    """Through a file and the cache of tokens."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = load_documents(str(folder / "rows.jsonl"), columns=columns)
    return tokenize_documents(documents, chat_tokenizer("chatml"), format=format)


def test_through_the_cache_of_tokens(folder):
    """Rows in order, with the columns named; a changed weight or template is another cache."""
    rows = [{"instruction": f"Question {n}", "output": "yes" * (n + 1), "id": n} for n in range(40)]
    columns = {"prompt": "instruction", "completion": "output"}
    tokens = tokens_of(folder, rows, Format("completion"), columns)
    assert tokens.column_names == ["input_ids", "length", "weights"] and len(tokens) == 40
    kinds = {name: tokens.features[name] for name in ("input_ids", "weights")}
    assert kinds == {
        "input_ids": datasets.List(datasets.Value("int32")),
        "weights": datasets.List(datasets.Value("float32")),
    }
    tokenizer = chat_tokenizer("chatml")
    for row, one in zip(rows, tokens, strict=True):
        assert tokenizer.decode(one["input_ids"]) == row["instruction"] + row["output"] + "<|im_end|>"
        assert one["length"] == len(one["input_ids"]) == len(one["weights"])
    light = tokens_of(folder, rows, Format("completion", 0.5), columns)
    assert light["input_ids"][:] == tokens["input_ids"][:] and min(light[3]["weights"]) == 0.5
    whole = tokens_of(folder, rows, Format("completion", 1.0), columns)
    assert whole.column_names == ["input_ids", "length"]


def test_a_bad_row_in_a_file_and_a_missing_column(folder):
    rows = [{"messages": CHAT}] * 20 + [{"messages": CHAT[:1]}]
    with pytest.raises(DataError, match=r"^document 20 \(the first is 0\): messages has no answer"):
        tokens_of(folder, rows, Format("messages"), {"messages": "messages"})
    with pytest.raises(DataError, match="has no column 'messages'; it has: conversations"):
        tokens_of(folder, [{"conversations": CHAT}], Format("messages"), {"messages": "messages"})
    assert len(tokens_of(folder, [{"conversations": CHAT}], Format("messages"), {"messages": "conversations"})) == 1


def test_files_of_several_kinds(folder):
    """Rows of JSON and of Parquet are one source; a file without a column of the format is named."""
    (folder / "data").mkdir()
    rows = [{"prompt": "a", "completion": "b"}]
    (folder / "data" / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    Dataset.from_list(rows).to_parquet(str(folder / "data" / "b.parquet"))
    columns = {"prompt": "prompt", "completion": "completion"}
    assert load_documents(str(folder / "data"), columns=columns)[:] == {"prompt": ["a", "a"], "completion": ["b", "b"]}
    (folder / "data" / "d.csv").write_text("prompt,completion\na,b\n")  # its strings are large ones
    assert load_documents(str(folder / "data"), columns=columns)["completion"][:] == ["b"] * 3
    (folder / "data" / "c.jsonl").write_text('{"prompt": "c"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl has no field 'completion' in any row; the first row has: prompt"):
        load_documents(str(folder / "data"), columns=columns)
    (folder / "latin1.jsonl").write_bytes('{"prompt": "\xe9", "completion": "b"}\n'.encode("latin1"))
    with pytest.raises(DataError, match=r"latin1\.jsonl: line 1 is not UTF-8"):
        load_documents(str(folder / "latin1.jsonl"), columns=columns)
