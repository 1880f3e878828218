"""Tensors of the windows: labels, starts, lengths; workers, ranks and resume change nothing."""

import itertools
import json

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset, Features, List, Value

from hmt_ds.data import Batch, DataError, WindowLoader

L = 8
LENGTHS = [56, 3, 16, 33, 1, 24, 8, 50]  # 7 segments, less than one, exact multiples, one token
FIELDS = ("input_ids", "labels", "lengths", "starts", "documents")


@pytest.fixture(scope="module")
def tokens() -> Dataset:
    random = np.random.default_rng(0)
    ids = [random.integers(1, 1000, length) for length in LENGTHS]
    features = Features({"input_ids": List(Value("int32")), "length": Value("int64")})
    return Dataset.from_dict({"input_ids": ids, "length": LENGTHS}, features=features)


def loader(tokens: Dataset, **changes) -> WindowLoader:
    arguments = {"segments": 3, "segment_length": L, "seed": 3, "rank": 0, "world_size": 1, "batch_size": 4}
    return WindowLoader(tokens, **{**arguments, **changes})


def same(one: Batch, other: Batch) -> bool:
    return one.position == other.position and all(
        torch.equal(getattr(one, field), getattr(other, field)) for field in FIELDS
    )


def test_shapes_and_types(tokens):
    batch = next(iter(loader(tokens)))
    assert batch.input_ids.shape == batch.labels.shape == (4, 3, L)
    assert batch.lengths.shape == batch.starts.shape == batch.documents.shape == (4, 3)
    kinds = {field: getattr(batch, field).dtype for field in FIELDS}
    assert kinds == dict.fromkeys(FIELDS, torch.int64) | {"starts": torch.bool}


def test_one_epoch_gives_each_document_back_with_labels_shifted_over_the_whole_document(tokens):
    seen: dict[int, list[tuple[list[int], list[int]]]] = {}
    for batch in loader(tokens, epochs=1):
        for segment, row in itertools.product(range(3), range(4)):
            length, document = int(batch.lengths[row, segment]), int(batch.documents[row, segment])
            ids, labels = batch.input_ids[row, segment], batch.labels[row, segment]
            assert not ids[length:].any() and (labels[length:] == -100).all()
            assert bool(batch.starts[row, segment]) == (document not in seen)
            if document < 0:
                assert length == 0
                continue
            assert length > 0
            seen.setdefault(document, []).append((ids[:length].tolist(), labels[:length].tolist()))
    seen.pop(-1, None)
    assert sorted(seen) == list(range(len(LENGTHS)))
    for document, segments in seen.items():
        whole = tokens[document]["input_ids"]
        assert [token for ids, _ in segments for token in ids] == whole
        assert [label for _, labels in segments for label in labels] == [*whole[1:], -100]
        assert len(segments) == -(-len(whole) // L)


def test_weights_are_shifted_like_labels(tokens):
    """Weight 0 is a label of -100; a batch has weights only where others than 0 and 1 are."""
    random = np.random.default_rng(1)
    for choices, weighted in ([0, 1], False), ([0.0, 0.25, 1.0], True):
        weights = [random.choice(choices, length) for length in LENGTHS]
        features = tokens.features | {"weights": List(Value("float32"))}
        columns = Dataset.from_dict({**tokens.to_dict(), "weights": weights}, features=Features(features))
        seen: dict[int, list[float]] = {}
        for batch, plain in zip(loader(columns, epochs=1), loader(tokens, epochs=1), strict=True):
            assert (batch.weights is not None) == weighted
            counted = (batch.labels != -100).float() if batch.weights is None else batch.weights
            assert torch.equal(batch.labels, plain.labels.where(counted > 0, -100))
            for segment, row in itertools.product(range(3), range(4)):
                length, document = int(batch.lengths[row, segment]), int(batch.documents[row, segment])
                assert not counted[row, segment, length:].any()
                seen.setdefault(document, []).extend(counted[row, segment, :length].tolist())
        assert all(seen[n] == [*weights[n][1:], 0] for n in range(len(LENGTHS)))


def test_a_document_of_one_and_of_seven_segments_together(tokens):
    pair = tokens.select([0, 1])
    first, second, third = loader(pair, batch_size=2, shuffle=False, epochs=1)
    assert first.documents.tolist() == [[0, 0, 0], [1, -1, -1]]
    assert first.lengths.tolist() == [[L, L, L], [3, 0, 0]]
    assert first.starts.tolist() == [[True, False, False], [True, True, True]]
    assert first.labels[0, 0, -1] == first.input_ids[0, 1, 0]
    assert first.labels[0, 2, -1] == second.input_ids[0, 0, 0]  # across windows
    assert third.lengths.tolist() == [[L, 0, 0], [0, 0, 0]]
    assert third.labels[0, 0, -1] == -100 and third.labels[0, 0, -2] == third.input_ids[0, 0, -1]


def test_an_exact_multiple_has_no_empty_segment_behind_it(tokens):
    (batch,) = loader(tokens.select([2, 6]), batch_size=1, shuffle=False, epochs=1)
    assert batch.lengths.tolist() == [[L, L, L]]
    assert batch.starts.tolist() == [[True, False, True]]
    assert batch.labels[0, 1, -1] == -100


def test_the_number_of_workers_changes_nothing(tokens):
    expected = list(itertools.islice(loader(tokens), 8))
    for workers in (1, 2):
        batches = list(itertools.islice(loader(tokens, num_workers=workers), 8))
        assert len(batches) == 8
        assert all(map(same, batches, expected))


def test_a_worker_outlives_sigterm_and_ends_with_its_loader(tokens):
    """A scheduler sends the signal to all processes, and the rank still has steps to do and a checkpoint to write."""
    expected = list(itertools.islice(loader(tokens), 12))
    before = psutil.Process().children()
    batches = iter(loader(tokens, num_workers=1))
    found = [next(batches)]
    workers = [child for child in psutil.Process().children() if child not in before]
    assert len(workers) == 1
    workers[0].terminate()
    found += itertools.islice(batches, 11)  # more than are read ahead
    assert all(map(same, found, expected)) and workers[0].is_running()
    del batches
    assert psutil.wait_procs(workers, timeout=10) == (workers, [])


@pytest.mark.parametrize("epochs", [1, None])
def test_ranks_share_the_windows_of_one_process(tokens, epochs):
    whole = list(itertools.islice(loader(tokens, epochs=epochs), 8))
    for world_size in (2, 4):
        ranks = [
            loader(tokens, epochs=epochs, rank=rank, world_size=world_size, batch_size=4 // world_size)
            for rank in range(world_size)
        ]
        windows = list(zip(*(itertools.islice(rank, 8) for rank in ranks), strict=True))
        assert len(windows) == len(whole)
        for parts, window in zip(windows, whole, strict=True):
            for field in FIELDS:
                assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(window, field))
            assert all(part.position == window.position for part in parts)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_from_any_batch(tokens, num_workers):
    whole = list(loader(tokens, epochs=2))
    stops = range(len(whole)) if num_workers == 0 else [2]
    for stop in stops:
        position = json.loads(json.dumps(whole[stop].position))
        rest = list(loader(tokens, epochs=2, state=position, num_workers=num_workers))
        assert len(rest) == len(whole) - stop - 1
        assert all(map(same, rest, whole[stop + 1 :]))


def test_each_iteration_begins_again(tokens):
    batches = loader(tokens, epochs=1)
    first, second = list(batches), list(batches)
    assert len(first) == len(second) > 1
    assert all(map(same, first, second))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_global_random_state_alone(tokens, num_workers):
    before = torch.get_rng_state()
    list(loader(tokens, epochs=1, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds(tokens):
    one, again, other = (list(loader(tokens, epochs=1, seed=seed)) for seed in (1, 1, 2))
    assert all(map(same, one, again))
    assert not same(one[0], other[0])


def test_totals(tokens):
    assert loader(tokens).documents_total == len(LENGTHS)
    assert loader(tokens).tokens_total == sum(LENGTHS)


def test_a_position_of_another_global_batch_is_refused(tokens):
    position = next(iter(loader(tokens))).position
    with pytest.raises(DataError, match="position is of 4 rows, but the run has 8"):
        next(iter(loader(tokens, world_size=2, state=position)))
