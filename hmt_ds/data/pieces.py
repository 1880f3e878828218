"""Tokenize a long text in overlapping pieces, so that the token ids equal those of the whole text.

Two pieces are joined where, in the middle half of the text that they share, both have the same tokens at the same
positions. The reasons that the ids are those of the whole:

- A tokenizer that splits text into words first (a pre-tokenizer) scans from left to right, and a word boundary that
  both pieces have is one of the whole: before it the first piece is right, and behind it the scan goes on as in the
  second. Words are tokenized one by one.
- Byte-pair encoding without words: where two neighbouring tokens are the same in both pieces, no merge crosses the
  boundary between them, because the order of the merges there does not depend on what is further away.

Pieces that do not agree, as in a very long run of digits that a tokenizer groups by three, are made longer, up to the
whole text.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

PIECE = 1 << 16  # bytes: byte-pair encoding of longer texts is slower
OVERLAP = 1 << 11  # bytes that a piece shares with the one before
AT_ONCE = 1 << 20  # bytes of pieces that are tokenized in one go

Result = TypeVar("Result")


class NoJoin(Exception):
    """Raised if two overlapping pieces of a text have different tokens where they overlap, so they cannot be joined."""


@dataclass(frozen=True)
class Edge:
    """The tokens in the middle half of the overlap of two neighbouring pieces of a text.

    Attributes:
        first: Index of the edge's first token in the piece's token ids.
        tokens: `[tokens, 4]` int64: id, first character, end character (both counted from the beginning of the
            overlap), and 1 where a word begins, else 0.
    """

    first: int
    tokens: np.ndarray


@dataclass(frozen=True)
class Piece:
    """The token ids of one piece of a long text, and the tokens that it shares with the pieces before and behind it.

    Attributes:
        ids: `[tokens]` int32; or `[tokens, 3]`: id, first and end character of each token.
        head: The tokens in the overlap with the piece before; None for the first piece.
        tail: The tokens in the overlap with the next piece; None for the last piece.
    """

    ids: np.ndarray
    head: Edge | None
    tail: Edge | None


def splits_words(tokenizer: PreTrainedTokenizerBase) -> bool | None:
    """Return where overlapping pieces of a tokenized text may be joined: True where a word begins, False at any token.

    None if they cannot be joined: the tokenizer is not a fast one, has dropout, or is no BPE and splits no words.

    Args:
        tokenizer: The tokenizer.
    """
    if not tokenizer.is_fast:
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, words = backend["model"], backend["pre_tokenizer"]
    if model.get("dropout"):  # at random: the ids of the same text differ from call to call
        return None
    whole = words is None or (words["type"] == "Metaspace" and not words.get("split", True))
    return None if whole and model["type"] != "BPE" else not whole


def spans(size: int, piece: int = PIECE, overlap: int = OVERLAP) -> list[tuple[int, int]]:
    """Return the first and end byte (end exclusive) of each overlapping piece of a text.

    Args:
        size: Length of the text in bytes.
        piece: Bytes per piece, without the overlap.
        overlap: Bytes that a piece shares with the one before.
    """
    return [(max(0, start - overlap), min(start + piece, size)) for start in range(0, size, piece)]


def encode_pieces(
    text: memoryview,
    parts: list[tuple[int, int]],
    overlap: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    first: int | None = None,
    **options: bool | None,
) -> list[Piece]:
    """Tokenize overlapping parts of a text, each with the special tokens that the tokenizer adds (BOS, EOS).

    Args:
        text: The whole text, UTF-8.
        parts: First and end byte of each part (end exclusive).
        overlap: Bytes that a part shares with the one before.
        tokenizer: A fast tokenizer without dropout.
        first: Number of characters before the first part, to make `Piece.ids` `[tokens, 3]` with each token's first and
            end character in the whole text; None for ids alone.
        options: Other arguments of the tokenizer.
    """
    texts = [_decode(text, *part) for part in parts]
    encoded = tokenizer(texts, return_attention_mask=False, verbose=False, **options)
    pieces = []
    for (start, end), part, encoding in zip(parts, texts, encoded.encodings, strict=True):
        ids = np.asarray(encoding.ids, np.int32)
        head = _edge(encoding, ids, 0, len(_decode(text, start, start + overlap))) if start else None
        shared = len(_decode(text, end - overlap, end))
        tail = _edge(encoding, ids, len(part) - shared, shared) if end < len(text) else None
        if first is not None:
            place = first + len(_decode(text, parts[0][0], start))
            ids = np.column_stack([ids, _places(encoding, place)])
        pieces.append(Piece(ids, head, tail))
    return pieces


def in_pieces(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    words: bool,
    work: Callable[[np.ndarray, np.ndarray], Result],
    **options: bool | None,
) -> list[Result]:
    """Tokenize a long text in overlapping pieces, call a function on the tokens of each piece, and return the results.

    Args:
        text: The text.
        tokenizer: A fast tokenizer without dropout.
        words: Whether pieces may be joined only where a word begins; otherwise at any token.
        work: The function: takes the ids of consecutive tokens, `[tokens]` int32, and their first and end characters,
            `[tokens, 2]`.
        options: Other arguments of the tokenizer.
    """
    raw, longer = memoryview(text.encode()), 1
    while True:
        try:
            pieces = _some_pieces(raw, longer * PIECE, longer * OVERLAP, tokenizer, **options)
            return [work(tokens[:, 0], tokens[:, 1:]) for tokens in join(pieces, words)]
        except NoJoin:
            longer *= 8


def _some_pieces(
    text: memoryview, piece: int, overlap: int, tokenizer: PreTrainedTokenizerBase, **options: bool | None
) -> Iterator[Piece]:
    """Yield the tokenized pieces of a text, with first and end character of each token, tokenizing about 1 MiB at a
    time.
    """
    parts, many = spans(len(text), piece, overlap), max(1, AT_ONCE // piece)
    first = begun = 0
    for number in range(0, len(parts), many):
        some = parts[number : number + many]
        first, begun = first + len(_decode(text, begun, some[0][0])), some[0][0]
        yield from encode_pieces(text, some, overlap, tokenizer, first=first, **options)


def _places(encoding: Encoding, first: int) -> np.ndarray:
    """Return first and end character of each token, `[tokens, 2]` int32; both are 0 for one without text, as BOS."""
    places = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    return np.where(places[:, :1] == places[:, 1:], 0, places + np.int32(first))


def join(pieces: Iterable[Piece], words: bool) -> Iterator[np.ndarray]:
    """Join overlapping pieces of a text; yield the whole text's token ids, `[tokens]` int32, some at a time.

    Args:
        pieces: All pieces, in order.
        words: Whether pieces may be joined only where a word begins; otherwise at any token.

    Raises:
        NoJoin: Two neighbouring pieces have different tokens in the middle of their overlap.
    """
    start, previous = 0, None
    for piece in pieces:
        if previous is not None:
            end, behind = _cut(previous, piece, words)
            yield previous.ids[start:end]
            start = behind
        previous = piece
    if previous is not None:
        yield previous.ids[start:]


def join_all(pieces: list[Piece], words: bool) -> Piece:
    """Join overlapping neighbouring pieces of a text into one piece.

    Args:
        pieces: The pieces, in order; at least one.
        words: Whether pieces may be joined only where a word begins; otherwise at any token.

    Raises:
        NoJoin: Two neighbouring pieces have different tokens in the middle of their overlap.
    """
    last = pieces[-1]
    ids = np.concatenate(list(join(pieces, words)))
    tail = last.tail and replace(last.tail, first=last.tail.first + len(ids) - len(last.ids))
    return Piece(ids, pieces[0].head, tail)


def _decode(text: memoryview, start: int, end: int) -> str:
    """Decode bytes `start` to `end` of a UTF-8 text, both moved back to the beginning of a character."""
    return str(text[_character(text, start) : _character(text, end)], "utf-8")


def _character(text: memoryview, place: int) -> int:
    while 0 < place < len(text) and text[place] & 0xC0 == 0x80:
        place -= 1
    return place


def _edge(encoding: Encoding, ids: np.ndarray, first: int, size: int) -> Edge:
    """Return the tokens that begin in the middle half of `size` characters, of which the first is `first`."""
    low, high = first + size // 4, first + size - size // 4
    within = (encoding.char_to_token(place) for place in range(low, high))
    begin = next((token for token in within if token is not None), len(encoding))
    tokens, word = [], encoding.token_to_word(begin - 1) if 0 < begin < len(encoding) else None
    for token in range(begin, len(encoding)):
        place, before, word = encoding.token_to_chars(token), word, encoding.token_to_word(token)
        if place is None or place[0] >= high:
            break
        tokens.append((ids[token], place[0] - first, place[1] - first, word != before))
    return Edge(begin, np.asarray(tokens, np.int64).reshape(-1, 4))


def _cut(left: Piece, right: Piece, words: bool) -> tuple[int, int]:
    """Return how many token ids to keep of the left piece, and the index of the first one to keep of the right piece.

    Raises:
        NoJoin: The pieces have different tokens in the middle of their overlap, or no place to join them.
    """
    tail, head = left.tail, right.head
    if tail is None or head is None or not np.array_equal(tail.tokens, head.tokens):
        raise NoJoin
    places = np.flatnonzero(tail.tokens[:, 3]) if words else np.arange(len(tail.tokens))
    places = places[places > 0]  # the token before is to be the same too
    if not len(places):
        raise NoJoin
    place = int(places[len(places) // 2])
    return tail.first + place, head.first + place
