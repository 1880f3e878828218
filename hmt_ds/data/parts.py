"""Tokenize a text that has answers, in pieces if it is long, and tell which tokens belong to the answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.pieces import in_pieces, splits_words
from hmt_ds.data.special_tokens import special_ids
from hmt_ds.data.token_work import LONG

Span = tuple[int, int]


class Part(NamedTuple):
    """A text to tokenize: a whole document, or one question about it.

    Attributes:
        text: The rendered text.
        answers: First and end character of each answer in the text.
        literal: First and end character of each stretch in which special tokens are read as plain text.
    """

    text: str
    answers: Sequence[Span]
    literal: Sequence[Span] = ()


def encode_part(
    part: Part,
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_special_tokens: bool,
    split_special_tokens: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenize a text with answers, and tell which tokens belong to them.

    A token that begins before an answer and reaches into it belongs to the answer: otherwise the answer's first letters
    would not be learnt.

    Args:
        part: The text, and the character spans of its answers.
        tokenizer: A fast tokenizer.
        add_special_tokens: Whether the tokenizer adds BOS and the like.
        split_special_tokens: Whether special tokens within the text are read as plain text; None for what the tokenizer
            does by default.

    Returns:
        Token ids, `[tokens]` int32, and a mask `[tokens]` (bool) of those that belong to answers.
    """
    options = {"add_special_tokens": add_special_tokens, "split_special_tokens": split_special_tokens}

    def work(ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers = within(offsets, part.answers)
        special = np.isin(ids, special_ids(tokenizer)) & within(offsets, part.literal) if part.literal else np.array([])
        return as_text(ids, answers, offsets, np.flatnonzero(special), part.text, tokenizer)

    if len(part.text) > LONG and (words := splits_words(tokenizer)) is not None:
        found = in_pieces(part.text, tokenizer, words, work, **options)
    else:
        encoded = tokenizer(
            part.text, return_attention_mask=False, return_offsets_mapping=True, verbose=False, **options
        )
        found = [work(np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.offset_mapping).reshape(-1, 2))]
    ids, answers = zip(*found, strict=True)
    return np.concatenate(ids), np.concatenate(answers)


def within(offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Return a mask `[tokens]` (bool) of the tokens that share a character with one of the spans.

    Args:
        offsets: First and end character of each token, `[tokens, 2]`.
        spans: First and end character of each span.
    """
    found = np.zeros(len(offsets), dtype=bool)
    for begin, end in spans:
        found |= (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return found


def as_text(
    ids: np.ndarray,
    answers: np.ndarray,
    offsets: np.ndarray,
    special: np.ndarray,
    text: str,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace some special tokens by the tokens of their written form, such as the characters of `</s>`.

    Args:
        ids: Token ids, `[tokens]` int32.
        answers: Mask of the tokens that belong to answers, `[tokens]` bool.
        offsets: First and end character of each token in `text`, `[tokens, 2]`.
        special: Indices of the tokens to replace, ascending.
        text: The text that was tokenized.
        tokenizer: A fast tokenizer.

    Returns:
        The new token ids, `[tokens]` int32, and the new mask of those that belong to answers, `[tokens]` bool.
    """
    for at in special[::-1].tolist():
        begin, end = offsets[at].tolist()
        plain = tokenizer(text[begin:end], add_special_tokens=False, split_special_tokens=True).input_ids
        ids = np.concatenate([ids[:at], np.asarray(plain, np.int32), ids[at + 1 :]])
        answers = np.concatenate([answers[:at], np.full(len(plain), answers[at]), answers[at + 1 :]])
    return ids, answers


def end_answer(ids: np.ndarray, answers: np.ndarray, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """Append the token `eos` to token ids, unless they end with it, and mark it as part of the answer.

    Args:
        ids: Token ids, `[tokens]`.
        answers: Mask of the tokens that belong to answers, `[tokens]` bool.
        eos: Id of the token that ends the answer.
    """
    if len(ids) and ids[-1] == eos:
        return ids, np.append(answers[:-1], True)
    return np.append(ids, np.int32(eos)), np.append(answers, True)
