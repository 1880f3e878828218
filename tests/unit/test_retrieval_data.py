"""Generated retrieval documents: what they say, read back from the text; lengths, labels, targets; ranks and resume."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hmt_ds.config.load import load_recipe
from hmt_ds.data import (
    IGNORE_INDEX,
    Batch,
    DataError,
    RetrievalDocuments,
    RetrievalLoader,
    RetrievalText,
    check_length,
    load_tokenizer,
    train_sentencepiece,
)
from hmt_ds.data.retrieval import split_things
from hmt_ds.data.retrieval_words import ADJECTIVES, FILLER, NOUNS, PLACES, THINGS, all_words
from hmt_ds.data.settings import Kind, RetrievalSettings
from hmt_ds.preflight.recipe_checks import retrieval_warnings

SAMPLES = Path(__file__).parents[2] / "hmt_ds/data/samples"
SEGMENTS = 6
FACT = re.compile(r"The (\w+ \w+) is in (\w+) ?\.")
QUESTION = re.compile(r"Where is the (\w+ \w+) ?\?$")
ANSWER = re.compile(r"^ ?It is in (\w+) ?\.")
KINDS: tuple[Kind, ...] = ("keys", "passkey", "overwritten")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerBase:
    """One token per word."""
    return load_tokenizer(str(SAMPLES / "words"))


@pytest.fixture(scope="module", params=["words", "byte-level", "sentencepiece"])
def tokenizer(request, tmp_path_factory, words) -> tuple[PreTrainedTokenizerBase, int]:
    """Tokenizers with one and with several tokens per word, and a segment's length in their tokens."""
    if request.param == "words":
        return words, 24
    novel = SAMPLES / "prideprejudice.txt"
    if request.param == "sentencepiece":
        return load_tokenizer(str(train_sentencepiece([novel], tmp_path_factory.mktemp("bpe") / "t", 500))), 90
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train([str(novel)], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    bpe.decoder = Tokenizer.from_str(bpe.to_str()).decoder
    return PreTrainedTokenizerFast(tokenizer_object=bpe), 90


def documents(tokenizer, length=24, kind: Kind = "keys", **changes) -> RetrievalDocuments:
    text = RetrievalText(tokenizer)
    text.check(length, 64)
    return RetrievalDocuments(text, RetrievalSettings(kind, values=64), segment_length=length, **{"seed": 3, **changes})


def loader(words, **changes) -> RetrievalLoader:
    arguments = {"segments": lambda _: 4, "rank": 0, "world_size": 1, "batch_size": 4, **changes}
    return RetrievalLoader(documents(words), **arguments)


def decode(tokenizer, ids) -> str:
    """Byte-level tokenizers without a decoder show a blank as a letter."""
    return tokenizer.decode(ids).replace(" ", "" if "Ġ" in tokenizer.get_vocab() else " ").replace("Ġ", " ")


def same(one: Batch, other: Batch) -> bool:
    fields = ("input_ids", "labels", "lengths", "starts", "documents", "targets")
    return one.position == other.position and all(torch.equal(getattr(one, f), getattr(other, f)) for f in fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_read_back(tokenizer, kind):
    """Each answer is the newest fact about the thing that the previous segment asked for; labels and targets agree."""
    tokenizer, length = tokenizer
    questions = 0
    for number in range(20):
        ids, labels, targets = documents(tokenizer, length, kind).document(number, SEGMENTS)
        assert ids.shape == labels.shape == (SEGMENTS, length)
        facts, asked = dict[str, tuple[str, int]](), None
        for n, text in enumerate(decode(tokenizer, segment) for segment in ids):
            answer, at = ANSWER.search(text), np.flatnonzero(labels[n] != IGNORE_INDEX)
            assert (answer is None) == (asked is None) == (len(at) == 0) == (targets[n] == 0), text
            if answer:
                place, told = facts[asked]
                assert answer[1] == place and targets[n] == n - told
                assert decode(tokenizer, labels[n, at]).strip() == place
                assert (labels[n, at] == ids[n, at + 1]).all() and (np.diff(at) == 1).all()
                questions += 1
            for thing, place in FACT.findall(text):
                assert facts.get(thing, ("", 0))[0] != place and tuple(thing.split()) in THINGS
                facts[thing] = place, n
            question = QUESTION.search(text)
            asked = question[1] if question else None
        assert asked is None  # nothing after the last segment answers
        expected = {"keys": SEGMENTS, "passkey": 1, "overwritten": len(facts)}
        assert len(facts) == expected[kind] and len(facts) <= (3 if kind == "overwritten" else 6)
    assert questions == 20 * (1 if kind == "passkey" else SEGMENTS - 1)


def test_facts_are_everywhere_in_their_segments_and_asked_from_everywhere(words):
    made = [documents(words).document(number, 8) for number in range(200)]
    verb = words.convert_tokens_to_ids(["is", "in"])
    at = [
        next(i for i in range(5, 24) if list(segment[i : i + 2]) == verb) for ids, _, _ in made for segment in ids[1:7]
    ]
    assert set(at) == set(range(8, 15))  # 11 of 24 tokens are the answer and the question, 7 the fact
    targets = np.stack([targets for _, _, targets in made])
    assert all(set(targets[:, n]) == set(range(1, n + 1)) for n in range(1, 8))
    # the fact that was just told is asked for rarely
    assert 0.1 < (targets[:, 2:] == 1).mean() < 0.4 and (targets[:, 7] == 1).mean() < 0.25


def test_overwritten_facts_are_asked_for(words):
    made = documents(words, kind="overwritten")
    overwritten = 0
    for number in range(50):
        ids, _, targets = made.document(number, 8)
        told = [FACT.search(words.decode(segment))[1] for segment in ids]
        overwritten += sum(told[n - targets[n]] in told[: n - targets[n]] for n in range(1, 8))
    assert overwritten > 50


def test_documents_depend_on_their_number_and_the_seed_alone(words):
    one, other = documents(words), documents(words)
    other.document(4, 3)
    assert all(map(np.array_equal, one.document(7, 5), other.document(7, 5)))
    for different in (one.document(8, 5), documents(words, seed=4).document(7, 5)):
        assert not np.array_equal(one.document(7, 5)[0], different[0])
    left_out = documents(words, left_out=[7])
    assert not np.array_equal(left_out.document(7, 5)[0], one.document(7, 5)[0])
    assert np.array_equal(left_out.document(8, 5)[0], one.document(8, 5)[0])


def test_things_that_are_held_out_are_not_in_training(words):
    def named(**changes) -> set[str]:
        made = documents(words, **changes)
        texts = [words.decode(made.document(number, 8)[0].flatten()) for number in range(1000)]
        return {thing for text in texts for thing, _ in FACT.findall(text)}

    training, evaluation = named(), named(held_out=True)
    assert len(training) == 3072 and len(evaluation) == 1024 and not training & evaluation
    assert not named(seed=5) & evaluation  # in no run


def test_rows_of_a_window_name_different_things(words):
    """They are the negatives that recall learns to tell apart."""
    batch = next(iter(loader(words, segments=lambda _: 8, batch_size=32)))
    facts = FACT.findall(words.decode(batch.input_ids.flatten()))
    assert len({thing for thing, _ in facts}) == 32 * 8


def test_shapes_and_types(words):
    batch = next(iter(loader(words)))
    assert batch.targets is not None
    assert batch.input_ids.shape == batch.labels.shape == (4, 4, 24)
    assert batch.starts.tolist() == [[True, False, False, False]] * 4
    assert batch.lengths.tolist() == [[24] * 4] * 4
    assert batch.documents.tolist() == [[row] * 4 for row in range(4)]
    assert {x.dtype for x in (batch.input_ids, batch.labels, batch.lengths, batch.targets)} == {torch.int64}


def test_ranks_share_the_windows_of_one_process(words):
    whole = list(itertools.islice(loader(words), 3))
    for size in (2, 4):
        ranks = [loader(words, rank=rank, world_size=size, batch_size=4 // size) for rank in range(size)]
        for parts, window in zip(zip(*(itertools.islice(rank, 3) for rank in ranks), strict=True), whole, strict=True):
            assert torch.equal(torch.cat([part.input_ids for part in parts]), window.input_ids)
            assert torch.equal(torch.cat([part.targets for part in parts]), window.targets)
            assert {json.dumps(part.position) for part in parts} == {json.dumps(window.position)}


def test_resume_after_each_window_and_workers_change_nothing(words):
    def curriculum(used: int = 0, **changes) -> RetrievalLoader:
        return loader(words, segments=lambda window: 2 + (used + window) // 2, **changes)

    expected = list(itertools.islice(curriculum(), 5))
    assert [batch.input_ids.shape[1] for batch in expected] == [2, 2, 3, 3, 4]
    for workers, used in ((0, 1), (0, 3), (2, 2)):
        state = json.loads(json.dumps(expected[used - 1].position))
        rest = list(itertools.islice(curriculum(used, state=state, num_workers=workers), 5 - used))
        assert all(map(same, rest, expected[used:])) and len(rest) == 5 - used


def test_an_evaluation_ends_and_reads_the_same_documents_with_any_rows(words):
    whole = [batch.input_ids for batch in loader(words, batch_size=5, total=5)]
    parts = list(loader(words, batch_size=3, total=5))
    assert len(whole) == 1 and len(parts) == 2
    assert torch.equal(torch.cat([batch.input_ids for batch in parts])[:5], whole[0])
    empty = parts[1]
    assert empty.documents[:, 0].tolist() == [3, 4, -1] and empty.lengths[2].tolist() == [0] * 4
    assert empty.starts[2].all() and (empty.labels[2] == IGNORE_INDEX).all() and not empty.targets[2].any()


def test_too_short_segments(words):
    with pytest.raises(DataError, match=r"segment of 17 tokens is too short: .* 5 \+ 7 \+ 6 = 18: raise memory"):
        RetrievalText(words).check(17, 24)
    RetrievalText(words).check(18, 24)
    documents(words, length=18).document(0, 4)


def test_a_tokenizer_without_the_words():
    tokenizer = Tokenizer(models.WordLevel({"[unk]": 0, "the": 1}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match=r"has no tokens for 354 of the 355 words .*samples/words"):
        RetrievalText(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]"))


@pytest.mark.parametrize(
    ("settings", "segments", "held_out", "message"),
    [
        (
            RetrievalSettings(),
            1,
            False,
            "documents of 1 segment are too short: with a question and its",
        ),
        (
            RetrievalSettings(keys=100),
            80,
            False,
            "training documents of 80 segments name 80 different things, but only 75 of",
        ),
        (
            RetrievalSettings(),
            1025,
            True,
            "evaluation documents of 1025 segments name 1025 different things, but only 1024 of",
        ),
        (RetrievalSettings("overwritten"), 2050, True, "name 1025 different things"),
    ],
)
def test_impossible_lengths(settings, segments, held_out, message):
    with pytest.raises(DataError, match=message):
        check_length(settings, segments, held_out=held_out)


def test_possible_lengths():
    check_length(RetrievalSettings(), 1024, held_out=True)
    check_length(RetrievalSettings("overwritten"), 2048, held_out=True)
    check_length(RetrievalSettings("passkey"), 10_000, held_out=True)


def test_words_are_told_apart():
    groups = [ADJECTIVES, NOUNS, PLACES, {word for sentence in FILLER for word in sentence}]
    assert [len(set(group)) for group in groups[:3]] == [64, 64, 64] and len(FILLER) == 40
    assert all(not set(one) & set(other) for one, other in itertools.combinations(groups, 2))
    training, evaluation = split_things(RetrievalSettings(keys=400, held_out=0.1))
    assert len(training) == 360 and len(evaluation) == 40 and not set(training) & set(evaluation)


def test_the_tokenizer_of_the_samples_has_these_words(words):
    assert words.convert_ids_to_tokens(range(len(words))) == ["<unk>", "<s>", *all_words()]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["--memory.sensory_tokens", "5"], ["memory.sensory_tokens is 5, but questions take up to 6 tokens: "]),
        (["--evaluation.retrieval_segments", "[8, 101]"], ["of 101 segments are evaluated, but only the newest 100"]),
        (["--memory.mode", "rmt", "--memory.recall_loss", "0", "--memory.sensory_tokens", "5"], []),
        (["--memory.interface", "paper", "--memory.recall_loss", "0"], ["the answer among them"]),
    ],
)
def test_warnings_about_facts_that_cannot_be_found(words, overrides, expected):
    recipe = load_recipe(SAMPLES.parents[2] / "launch/recipes/quickstart.yaml", overrides)
    found = retrieval_warnings(recipe, RetrievalText(words).question_tokens)
    assert len(found) == len(expected) and all(part in line for part, line in zip(expected, found, strict=True))
