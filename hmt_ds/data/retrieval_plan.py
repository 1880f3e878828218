"""Draw which fact each segment of a generated document tells and which one it asks for, as numbers without text."""

from dataclasses import dataclass

import numpy as np

from hmt_ds.data.settings import Kind

NOTHING = -1
ASK_OWN = 1 / 8  # how often a segment asks for the fact that it has just told, which is next to the question


@dataclass(frozen=True)
class DocumentPlan:
    """The facts that a generated document tells and asks for, per segment, each `[segments]` int64.

    A question at the end of segment n is answered at the beginning of segment n + 1, so the last segment asks nothing.

    Attributes:
        things: Index (into `THINGS`) of the thing that the segment's fact is about, or -1 (`NOTHING`) without a fact.
        places: Index (into `PLACES`) of the place where the fact says that the thing is.
        asked: Index of the segment whose fact answers the question at this segment's end, or -1 without a question.
    """

    things: np.ndarray
    places: np.ndarray
    asked: np.ndarray


def things_needed(kind: Kind, segments: int) -> int:
    """Return how many different things (such as "velvet blanket") the facts of a generated document are about.

    Args:
        kind: `keys`: one per segment; `passkey`: one; `overwritten`: one per two segments.
        segments: Segments of the document.
    """
    return {"keys": segments, "passkey": 1, "overwritten": -(-segments // 2)}[kind]


def plan_document(
    kind: Kind, segments: int, things: np.ndarray, places: int, random: np.random.Generator
) -> DocumentPlan:
    """Draw the facts and questions of a generated document at random.

    Args:
        kind: `keys`: a new thing in each segment; `passkey`: one fact, asked for at the end; `overwritten`: things that
            are moved.
        segments: Segments of the document, at least 2.
        things: Indices of the things to name, all different, `[things_needed(kind, segments)]`.
        places: Number of places to choose from, at least 2.
        random: Source of the random numbers.
    """
    if kind == "passkey":
        return _plan_passkey(segments, things[0], places, random)
    if kind == "keys":
        told, at = things, random.integers(places, size=segments)
    else:
        told = random.choice(things, size=segments)
        at = _moved(told, places, random)
    last = {}
    asked = np.full(segments, NOTHING)
    for n in range(segments - 1):
        last[told[n]] = n  # the newest fact about a thing counts
        own = n == 0 or random.random() < ASK_OWN
        asked[n] = last[told[n if own else random.integers(n)]]
    return DocumentPlan(told, at, asked)


def _plan_passkey(segments: int, thing: int, places: int, random: np.random.Generator) -> DocumentPlan:
    """Draw a document with one fact, in any segment but the last, where it is answered."""
    things, at, asked = (np.full(segments, NOTHING) for _ in range(3))
    told = random.integers(segments - 1)
    things[told], at[told], asked[-2] = thing, random.integers(places), told
    return DocumentPlan(things, at, asked)


def _moved(told: np.ndarray, places: int, random: np.random.Generator) -> np.ndarray:
    """Return the place of each fact, `[segments]`; it differs from that of the previous fact about the same thing.

    Args:
        told: Index of the thing that each segment's fact is about, `[segments]`.
        places: Number of places to choose from, at least 2.
    """
    at, now = np.zeros_like(told), dict[int, int]()
    for n, thing in enumerate(told):
        before = now.get(thing)
        at[n] = random.integers(places) if before is None else (before + random.integers(1, places)) % places
        now[thing] = at[n]
    return at
