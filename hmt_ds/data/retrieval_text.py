"""Sentences of the documents of `data.retrieval` (facts, filler and questions) as token ids of any tokenizer."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.errors import DataError
from hmt_ds.data.retrieval_plan import NOTHING, DocumentPlan
from hmt_ds.data.retrieval_words import ANSWER, FACT, FILLER, PLACES, QUESTION, THINGS, all_words

BEFORE_PLACE = len(ANSWER.split()) - 2  # words of the answer in front of the place


class RetrievalText:
    """Writes the facts, questions, answers and filler sentences of generated documents as token ids.

    Each word is tokenized once, as within a sentence, and sentences are put together from the ids. So generating a
    document does not run the tokenizer, and the text is the same with every tokenizer.

    Args:
        tokenizer: A tokenizer of `transformers` that encodes a word the same way whatever word precedes it.

    Raises:
        DataError: The tokenizer does not know a word, or merges a word with the preceding one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._words = _encode_words(tokenizer)
        self._filler = [self._encode(sentence) for sentence in FILLER]

    def segment(self, plan: DocumentPlan, n: int, length: int, random: np.random.Generator) -> tuple[list[int], range]:
        """Write one segment of a generated document: the answer to the previous segment's question, a fact amid filler,
        and a question.

        Args:
            plan: The document's facts and questions.
            n: Index of the segment in the document.
            length: Tokens per segment.
            random: Determines the filler and the fact's position.

        Returns:
            `length` token ids, and the range of positions of the answer's place (empty if nothing is answered).
        """
        begin, scored, fact, end = list[int](), range(0), list[int](), list[int]()
        if n and (told := plan.asked[n - 1]) != NOTHING:
            begin, scored = self.answer(plan.places[told])
        if plan.things[n] != NOTHING:
            fact = self.fact(plan.things[n], plan.places[n])
        if (told := plan.asked[n]) != NOTHING:
            end = self.question(plan.things[told])
        left = length - len(begin) - len(fact) - len(end)
        before = int(random.integers(left + 1))
        return [*begin, *self.filler(before, random), *fact, *self.filler(left - before, random), *end], scored

    def fact(self, thing: int, place: int) -> list[int]:
        """Return the token ids of the sentence that tells in which place a thing is.

        Args:
            thing: Index into `THINGS`.
            place: Index into `PLACES`.
        """
        return self._encode(FACT.format(*THINGS[thing], PLACES[place]).split())

    def question(self, thing: int) -> list[int]:
        """Return the token ids of the sentence that asks in which place a thing is.

        Args:
            thing: Index into `THINGS`.
        """
        return self._encode(QUESTION.format(*THINGS[thing]).split())

    def answer(self, place: int) -> tuple[list[int], range]:
        """Return the token ids of the sentence that answers with a place, and the range of positions of the place's
        name in it.

        Args:
            place: Index into `PLACES`.
        """
        words = ANSWER.format(PLACES[place]).split()
        first = len(self._encode(words[:BEFORE_PLACE]))
        return self._encode(words), range(first, first + len(self._words[PLACES[place]]))

    def filler(self, tokens: int, random: np.random.Generator) -> list[int]:
        """Return random filler sentences as token ids; the first sentence may lack its beginning.

        Args:
            tokens: Number of token ids to return.
            random: Source of the random numbers.
        """
        ids: list[int] = []
        while len(ids) < tokens:
            ids = self._filler[random.integers(len(self._filler))] + ids
        return ids[len(ids) - tokens :]

    def check(self, segment_length: int, places: int) -> None:
        """Check that a segment has room for the longest answer, fact and question together.

        Args:
            segment_length: Tokens per segment.
            places: Number of places that facts and answers can name.

        Raises:
            DataError: The three sentences need more tokens than a segment has.
        """
        named = self._longest_named()
        told = max(range(places), key=lambda place: len(self.answer(place)[0]))
        sizes = [len(self.answer(told)[0]), len(self.fact(named, told)), len(self.question(named))]
        if sum(sizes) > segment_length:
            raise DataError(
                f"a segment of {segment_length} tokens is too short: with this tokenizer an answer, a fact and a "
                f"question take up to {' + '.join(map(str, sizes))} = {sum(sizes)}: raise memory.segment_length"
            )

    @property
    def question_tokens(self) -> int:
        """Number of tokens of the longest question about a thing."""
        return len(self.question(self._longest_named()))

    def _longest_named(self) -> int:
        return max(range(len(THINGS)), key=lambda thing: len(self.question(thing)))

    def _encode(self, words: Sequence[str]) -> list[int]:
        return [token for word in words for token in self._words[word]]


def _encode_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return the token ids of each word as it is encoded behind another word.

    At the beginning of a text tokenizers encode a word differently: GPT-2's without its blank, Llama's with one.

    Raises:
        DataError: The tokenizer does not know a word, or merges a word with the one before.
    """
    words = all_words()
    (first, *both) = tokenizer(["the", *(_behind_the(word) for word in words)], add_special_tokens=False).input_ids
    joined = [
        word for word, ids in zip(words, both, strict=True) if ids[: len(first)] != first or len(ids) <= len(first)
    ]
    if joined:
        raise DataError(f"the tokenizer merges {joined[0]!r} with the word before: choose another model.tokenizer")
    encoded = {word: ids[len(first) :] for word, ids in zip(words, both, strict=True)}
    unknown = [word for word, ids in encoded.items() if tokenizer.unk_token_id in ids]
    if unknown:
        raise DataError(
            f"the tokenizer has no tokens for {len(unknown)} of the {len(words)} words ({', '.join(unknown[:3])}): "
            "choose "
            "another model.tokenizer, such as hmt_ds/data/samples/words"
        )
    return encoded


def _behind_the(word: str) -> str:
    return f"the{word}" if word in ".?" else f"the {word}"
