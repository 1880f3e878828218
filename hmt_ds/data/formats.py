"""Formats of documents: turn a row's columns into token ids and the weight of each token in the loss.

A row is rendered as text, with the character spans of its answers; the tokenizer's offsets say which tokens are
answers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.chat import render_chat
from hmt_ds.data.errors import DataError, RowError, first_line
from hmt_ds.data.settings import COLUMNS, FormatName

Row = Mapping[str, Any]


class Part(NamedTuple):
    """A text that is tokenized in one call: a whole document, or one question about it.

    Attributes:
        text: The rendered text.
        answers: First and end character of each answer in the text.
    """

    text: str
    answers: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Format:
    """How rows of a data set become tokens and their weights in the loss.

    Attributes:
        name: `text`: a document; `completion`: a prompt and the answer right behind it; `messages`: a conversation;
            `questions`: a document with one question and its answers, or with a list of questions.
        prompt_weight: Weight in the loss of tokens outside answers, 0 to 1; not used by `text`.
        chat_template: A Jinja template for `messages`; None for the tokenizer's own.
    """

    name: FormatName = "text"
    prompt_weight: float = 0.0
    chat_template: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a row of this format has, such as `("prompt", "completion")`."""
        return COLUMNS[self.name]

    @property
    def weighted(self) -> bool:
        """Whether tokens of this format have different weights in the loss."""
        return self.name != "text" and self.prompt_weight != 1

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a tokenizer can encode this format.

        Raises:
            DataError: `messages` has no chat template, or the tokenizer gives no character offsets (it is not a fast
                one).
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
        """Return what tokens and weights depend on besides row and tokenizer, to hash for a cache; empty for `text`."""
        if self.name == "text":
            return []
        return [self.name, self.prompt_weight, self.template(tokenizer)]

    def template(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return the chat template that rows are written with; None for other formats than `messages`."""
        return self.chat_template or tokenizer.chat_template if self.name == "messages" else None

    def encode(
        self, batch: Mapping[str, Sequence[Any]], first: int, tokenizer: PreTrainedTokenizerBase, eos: int | None
    ) -> tuple[list[list[int]], list[np.ndarray] | None]:
        """Tokenize rows of this format.

        Args:
            batch: The rows as columns, `{column: values}`, with the names of `columns`.
            first: Index of the first row in its data set, for errors.
            tokenizer: A tokenizer that `check` accepts.
            eos: Id to end documents and answers with; None for none. `messages` never adds it: chat templates end
                turns.

        Returns:
            The token ids of each row, and the weights of its tokens (`[tokens]` float32), or None if not `weighted`.

        Raises:
            RowError: A row does not have this format.
        """
        if self.name == "text":
            return encode_texts(batch["text"], tokenizer, eos), None
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
    ) -> tuple[list[int], np.ndarray]:
        """Tokenize one row; return its token ids and a mask `[tokens]` (bool) of those that belong to answers."""
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
    """Tokenize plain texts; end each with `eos`, unless it is None or already there."""
    # verbose=False: the warning about texts longer than the model's maximum has no meaning here, we read by segments.
    encoded = tokenizer(texts, return_attention_mask=False, verbose=False).input_ids
    return encoded if eos is None else [ids if ids and ids[-1] == eos else [*ids, eos] for ids in encoded]


def encode_part(
    part: Part, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> tuple[list[int], np.ndarray]:
    """Tokenize a text with answers; return its token ids and a mask `[tokens]` (bool) of those that belong to answers.

    A token that begins before an answer and reaches into it belongs to the answer: otherwise the answer's first letters
    would not be learnt.

    Args:
        part: The text and the character spans of its answers.
        add_special_tokens: Whether the tokenizer adds BOS and the like.
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
    """Append `eos` to token ids, unless they end with it, and mark it in the mask `answers` (`[tokens]` bool)."""
    if ids and ids[-1] == eos:
        return ids, np.append(answers[:-1], True)
    return [*ids, eos], np.append(answers, True)


def completion(row: Row) -> Iterator[Part]:
    """Yield a row of the format `completion` as one text: the prompt, and the answer right behind it.

    Raises:
        DataError: A column holds no text, or the completion is blank.
    """
    prompt, answer = text_of(row, "prompt"), text_of(row, "completion", filled=True)
    yield Part(prompt + answer, [(len(prompt), len(prompt) + len(answer))])


def questions(row: Row) -> Iterator[Part]:
    """Yield a row of the format `questions`: the document with one question and its answer, then each other question.

    If a question has several right answers, the first one is used.

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
