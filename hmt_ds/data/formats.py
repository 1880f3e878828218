"""Formats of documents: from the columns of a row to token ids, and to the weight of each token in the loss.

A row is rendered as text once, with the spans of its answers; the tokenizer's offsets say which tokens are in a span.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.chat import render_chat
from hmt_ds.data.errors import DataError, first_line
from hmt_ds.data.settings import COLUMNS, FormatName

Row = Mapping[str, Any]


class Part(NamedTuple):
    """A piece of a document that is tokenized at once.

    Attributes:
        text: The rendered text.
        answers: The spans of its answers, as positions in the text, first and behind the last.
    """

    text: str
    answers: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Format:
    """How rows become tokens.

    Attributes:
        name: `text`: a document; `completion`: a prompt and the answer right behind it; `messages`: a conversation;
            `questions`: a document with one question and its answers, or with a list of questions.
        prompt_weight: Weight in the loss of tokens outside answers, 0 to 1; not for `text`.
        chat_template: A Jinja template for `messages`; None for the tokenizer's own.
    """

    name: FormatName = "text"
    prompt_weight: float = 0.0
    chat_template: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row."""
        return COLUMNS[self.name]

    @property
    def weighted(self) -> bool:
        """Whether tokens have different weights."""
        return self.name != "text" and self.prompt_weight != 1

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a tokenizer has what the format needs.

        Raises:
            DataError: There is no chat template, or the tokenizer does not say where its tokens are in the text.
        """
        if self.name == "text":
            return
        if not tokenizer.is_fast:
            raise DataError(f"format {self.name} needs a tokenizer with a tokenizer.json, to find the answers' tokens")
        if self.name == "messages" and not (self.chat_template or tokenizer.chat_template):
            raise DataError("format messages: the tokenizer has no chat template; name a file with one: chat_template")

    def content(self, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
        """Everything besides rows and tokenizer that tokens and weights depend on; nothing for text."""
        if self.name == "text":
            return []
        template = (self.chat_template or tokenizer.chat_template) if self.name == "messages" else None
        return [self.name, self.prompt_weight, template]

    def encode(
        self, batch: Mapping[str, Sequence[Any]], first: int, tokenizer: PreTrainedTokenizerBase, eos: int | None
    ) -> tuple[list[list[int]], list[np.ndarray] | None]:
        """Tokenize some rows.

        Args:
            batch: The columns of the rows.
            first: Number of the first row, for errors.
            tokenizer: A tokenizer that `check` accepts.
            eos: The token that ends documents and answers; None for none. Chat templates end messages themselves.

        Returns:
            The token ids of each row, and if the format is weighted, the weights of its tokens, float32.

        Raises:
            DataError: A row is not of this format; with its number.
        """
        if self.name == "text":
            return encode_texts(batch["text"], tokenizer, eos), None
        ids, weights = [], []
        for number, values in enumerate(zip(*(batch[column] for column in self.columns), strict=True), start=first):
            try:
                encoded = self._encode_row(dict(zip(self.columns, values, strict=True)), tokenizer, eos)
            except DataError as error:
                raise DataError(f"document {number} (the first is 0): {error}") from None
            ids.append(encoded[0])
            weights.append(np.where(encoded[1], 1, self.prompt_weight).astype(np.float32))
        return ids, weights if self.weighted else None

    def _encode_row(
        self, row: Row, tokenizer: PreTrainedTokenizerBase, eos: int | None
    ) -> tuple[list[int], np.ndarray]:
        """Tokenize a row; return its token ids and which of them are answers."""
        if self.name == "messages":
            parts: Iterator[Part] = iter([Part(*render_chat(row["messages"], tokenizer, self.chat_template))])
            eos = None
        else:
            parts = PARTS[self.name](row)
        ids: list[int] = []
        answers: list[np.ndarray] = []
        for part in parts:
            begins = not ids and self.name != "messages"
            part_ids, part_answers = encode_part(part, tokenizer, add_special_tokens=begins)
            if eos is not None:
                part_ids, part_answers = end_answer(part_ids, part_answers, eos)
            ids += part_ids
            answers.append(part_answers)
        return ids, np.concatenate(answers)


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, eos: int | None) -> list[list[int]]:
    """Tokenize whole documents of plain text, each with EOS at its end."""
    # verbose=False: the warning about texts longer than the model's maximum has no meaning here, we read by segments.
    encoded = tokenizer(texts, return_attention_mask=False, verbose=False).input_ids
    return encoded if eos is None else [ids if ids and ids[-1] == eos else [*ids, eos] for ids in encoded]


def encode_part(
    part: Part, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> tuple[list[int], np.ndarray]:
    """Tokenize a part at once; return its token ids, and which of them have a character of an answer, `[tokens]` bool.

    A token that begins before an answer and reaches into it is of the answer: else its first letters would not be
    learnt.
    """
    encoded = tokenizer(
        part.text,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    offsets = np.asarray(encoded.offset_mapping, dtype=np.int64).reshape(-1, 2)
    answers = np.zeros(len(offsets), dtype=bool)
    for begin, end in part.answers:
        answers |= (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return encoded.input_ids, answers


def end_answer(ids: list[int], answers: np.ndarray, eos: int) -> tuple[list[int], np.ndarray]:
    """End a part with EOS, if the tokenizer did not do so, and count it as part of the answer."""
    if ids and ids[-1] == eos:
        return ids, np.append(answers[:-1], True)
    return [*ids, eos], np.append(answers, True)


def completion(row: Row) -> Iterator[Part]:
    """Yield a prompt and its completion as one part, with nothing between them."""
    prompt, answer = text_of(row, "prompt"), text_of(row, "completion", filled=True)
    yield Part(prompt + answer, [(len(prompt), len(prompt) + len(answer))])


def questions(row: Row) -> Iterator[Part]:
    """Yield a document with its question and answer; further questions about it are parts of their own.

    Of several right answers the first is used. `hmt-ds evaluate --questions` asks in the same words.
    """
    text, asked, answers = text_of(row, "context", filled=True), row["input"], row["answers"]
    if not isinstance(asked, list):
        asked, answers = [asked or ""], [answers]
    if not asked or not isinstance(answers, list) or len(answers) != len(asked):
        found = f"has {len(answers)}" if isinstance(answers, list) else "is no list"
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
    """Return a text of a row; one that must be filled may not be blank."""
    value = row[column]
    if value is None:
        raise DataError(f"{column} is missing")
    if not isinstance(value, str):
        hint = ": JSON's dates are read as times, so use Parquet" if isinstance(value, datetime) else ""
        raise DataError(f"{column} holds {type(value).__name__}, not text{hint}")
    if filled and not value.strip():
        raise DataError(f"{column} is empty")
    return value


def read_template(file: str) -> str:
    """Read a file with a chat template.

    Raises:
        DataError: The file cannot be read as text, or is empty.
    """
    try:
        template = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 ({first_line(error)})"
        raise DataError(f"chat_template: {file} cannot be read: {reason}") from None
    if not template.strip():
        raise DataError(f"chat_template: {file} is empty")
    return template
