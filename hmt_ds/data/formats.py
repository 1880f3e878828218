"""Formats of documents: turn the columns of a data set's row into token ids and each token's weight in the loss.

A row is rendered as text, with the character spans of its answers; the tokenizer's offsets say which tokens are
answers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.chat import render_chat, written_out
from hmt_ds.data.errors import DataError, RowError, first_line
from hmt_ds.data.parts import Part, encode_part, end_answer
from hmt_ds.data.settings import COLUMNS, FormatName, SpecialTokens
from hmt_ds.data.special_tokens import special_pattern

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How rows of a data set become tokens and their weights in the loss.

    Attributes:
        name: `text`: a document; `completion`: a prompt and the answer right behind it; `messages`: a conversation;
            `questions`: a document with one question and its answers, or with a list of questions.
        prompt_weight: Weight in the loss of tokens outside answers, 0 to 1; not used by `text`.
        chat_template: A Jinja template for `messages`; None for the tokenizer's own.
        special_tokens: How special tokens written in a text, such as `</s>`, are read: `text`, as plain text; `token`,
            as these tokens; None, as the tokenizer does by default.
    """

    name: FormatName = "text"
    prompt_weight: float = 0.0
    chat_template: str | None = None
    special_tokens: SpecialTokens | None = None

    @property
    def split_special_tokens(self) -> bool | None:
        """Whether special tokens written in a text are read as plain text; None for the tokenizer's default."""
        return None if self.special_tokens is None else self.special_tokens == "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a row must have in this format, such as `("prompt", "completion")`."""
        return COLUMNS[self.name]

    @property
    def weighted(self) -> bool:
        """Whether tokens of documents in this format have different weights in the loss."""
        return self.name != "text" and self.prompt_weight != 1

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a tokenizer can encode documents of this format.

        Args:
            tokenizer: The tokenizer.

        Raises:
            DataError: The format is `messages` and the tokenizer has no chat template, or the format needs character
                offsets and the tokenizer gives none (it is not a fast one).
        """
        if self.name == "text":
            return
        if not tokenizer.is_fast:
            raise DataError(
                f"format {self.name} needs a fast tokenizer (with a tokenizer.json): choose another model.tokenizer"
            )
        if self.name == "messages" and not (self.chat_template or tokenizer.chat_template):
            raise DataError("format messages: the tokenizer has no chat template; set chat_template to a file with one")

    def content(self, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
        """Return what token ids and loss weights depend on besides row and tokenizer, to hash for a cache; empty for
        `text`.

        Args:
            tokenizer: Supplies the chat template, if the format has none of its own.
        """
        usual = getattr(tokenizer, "split_special_tokens", False)
        other = [] if self.split_special_tokens in (None, usual) else [f"special tokens: {self.special_tokens}"]
        if self.name == "text":
            return other
        return [self.name, self.prompt_weight, self.template(tokenizer), *other]

    def template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the chat template (Jinja) that conversations are rendered with; None for formats other than
        `messages`.

        Args:
            tokenizer: Supplies the template, if the format has none of its own.
        """
        return self.chat_template or tokenizer.chat_template if self.name == "messages" else None

    def encode(
        self, batch: Mapping[str, Sequence[Any]], first: int, tokenizer: PreTrainedTokenizerBase, eos: int | None
    ) -> tuple[Sequence[Sequence[int] | np.ndarray], list[np.ndarray] | None]:
        """Tokenize rows of this format, with the weight of each token in the loss.

        Args:
            batch: The rows as columns, `{column: values}`, such as `{"prompt": [...], "completion": [...]}`.
            first: Index of the first row in its data set, for errors.
            tokenizer: A fast tokenizer; for `messages` one with a chat template.
            eos: Id to end documents and answers with; None for none. `messages` never adds it: chat templates end
                turns.

        Returns:
            The token ids of each row, and the loss weights of its tokens (`[tokens]` float32); None instead of weights
            if all tokens count 1.

        Raises:
            RowError: A row does not have this format.
        """
        if self.name == "text":
            return encode_texts(batch["text"], tokenizer, eos, self.split_special_tokens), None
        ids, weights = [], []
        for number, values in enumerate(zip(*(batch[column] for column in self.columns), strict=True), start=first):
            try:
                encoded = self._encode_row(dict(zip(self.columns, values, strict=True)), tokenizer, eos)
            except DataError as error:
                raise RowError(number, str(error)) from None
            ids.append(encoded[0])
            weights.append(np.where(encoded[1], 1, self.prompt_weight).astype(np.float32))
        return ids, weights if self.weighted else None

    def _encode_row(
        self, row: Row, tokenizer: PreTrainedTokenizerBase, eos: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize one row; return its token ids and a mask `[tokens]` (bool) of those that belong to answers."""
        chats = self.name == "messages"
        parts = iter([self._chat(row["messages"], tokenizer)]) if chats else PARTS[self.name](row)
        split = None if chats else self.split_special_tokens
        ids, answers = list[np.ndarray](), list[np.ndarray]()
        for part in parts:
            begins = not ids and not chats
            encoded = encode_part(part, tokenizer, add_special_tokens=begins, split_special_tokens=split)
            if eos is not None and not chats:
                encoded = end_answer(*encoded, eos)
            ids.append(encoded[0])
            answers.append(encoded[1])
        return np.concatenate(ids), np.concatenate(answers)

    def _chat(self, messages: object, tokenizer: PreTrainedTokenizerBase) -> Part:
        """Return a conversation as text, with its answers and the special tokens that its messages have as text."""
        text, answers = render_chat(messages, tokenizer, self.chat_template)
        if self.special_tokens != "text" or (pattern := special_pattern(tokenizer)) is None:
            return Part(text, answers)
        return Part(text, answers, written_out(messages, text, pattern, tokenizer, self.chat_template))


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, eos: int | None, split_special_tokens: bool | None = None
) -> list[list[int]]:
    """Tokenize plain texts, and end each with the token `eos`, unless `eos` is None or already there.

    Args:
        texts: The texts.
        tokenizer: Any tokenizer of `transformers`.
        eos: Id of the token to append; None for none.
        split_special_tokens: Whether special tokens written in a text are read as plain text; None for the tokenizer's
            default.
    """
    # verbose=False: the warning about texts longer than the model's maximum has no meaning here, we read by segments.
    options = {"split_special_tokens": split_special_tokens, "return_attention_mask": False, "verbose": False}
    encoded = tokenizer(texts, **options).input_ids
    return encoded if eos is None else [ids if ids and ids[-1] == eos else [*ids, eos] for ids in encoded]


def completion(row: Row) -> Iterator[Part]:
    """Yield a row of the format `completion` as one text: the prompt, and the answer right behind it.

    Args:
        row: The row, with the columns `prompt` and `completion`.

    Raises:
        DataError: A column holds no text, or the completion is blank.
    """
    prompt, answer = text_of(row, "prompt"), text_of(row, "completion", filled=True)
    yield Part(prompt + answer, [(len(prompt), len(prompt) + len(answer))])


def questions(row: Row) -> Iterator[Part]:
    """Yield a row of the format `questions` as texts: the document with one question and its answer, then each other
    question with its answer.

    If a question has several right answers, the first one is used.

    Args:
        row: The row, with the columns `context`, `input` and `answers`.

    Raises:
        DataError: There are not equally many questions and answers, or a text is missing or blank.
    """
    text, asked, answers = text_of(row, "context", filled=True), row["input"], row["answers"]
    if not isinstance(asked, list):
        asked, answers = [asked or ""], [answers]
    if not asked or not isinstance(answers, list) or len(answers) != len(asked):
        found = f"has {len(answers)}" if isinstance(answers, list) else "is not a list"
        raise DataError(
            f"column input has {len(asked)} questions, and column answers {found}: give each question an answer, and "
            "at least one question"
        )
    for question, given in zip(asked, answers, strict=True):
        one = {"input": question, "answers": next(iter(given), "") if isinstance(given, list) else given}
        question, answer = text_of(one, "input"), text_of(one, "answers", filled=True)
        prompt = text + (f" Question: {question}" if question else "") + " Answer:"
        yield Part(f"{prompt} {answer}", [(len(prompt), len(prompt) + 1 + len(answer))])
        text = ""


PARTS: dict[FormatName, Callable[[Row], Iterator[Part]]] = {"completion": completion, "questions": questions}


def text_of(row: Row, column: str, *, filled: bool = False) -> str:
    """Return the text in a column of a row.

    Args:
        row: The row, `{column: value}`.
        column: Name of the column.
        filled: Whether a blank text is an error.

    Raises:
        DataError: The value is missing or not text, or blank although it must be `filled`.
    """
    value = row[column]
    if value is None:
        raise DataError(f"column {column!r} is missing: give it a text")
    if not isinstance(value, str):
        hint = ": JSON's dates are read as times, so use Parquet" if isinstance(value, datetime) else ""
        raise DataError(f"column {column!r} holds {type(value).__name__}, but must hold text{hint}")
    if filled and not value.strip():
        raise DataError(f"column {column!r} is blank: give it a text, or leave the row out")
    return value


def read_template(file: str) -> str:
    """Return the text of a file with a chat template.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or is blank.
    """
    try:
        template = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 ({first_line(error)})"
        raise DataError(
            f"chat_template: {file} cannot be read ({reason}): name a UTF-8 file with a Jinja template"
        ) from None
    if not template.strip():
        raise DataError(f"chat_template: {file} is empty, but must hold a Jinja template: name another file")
    return template
