"""Scores of answers, as the public evaluations compute them."""

import re
import string
from collections import Counter
from collections.abc import Collection

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> list[str]:
    """Return the words of an answer as SQuAD and LongBench compare them: lower case, no punctuation, no articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", plain).split()


def exact_match(found: str, answer: str) -> float:
    """Return 1 if two answers are equal up to case, punctuation, articles and blanks."""
    return float(normalize(found) == normalize(answer))


def f1(found: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, each counted as often as it is there."""
    ours, theirs = Counter(normalize(found)), Counter(normalize(answer))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def names_only(found: str, answer: str, question: str, labels: Collection[str]) -> float:
    """Return 1 if the first sentence names the answer and no other label, as BABILong scores.

    Labels that the question names may be repeated in the answer.
    """
    sentence = found.lower().strip().split(".")[0].split("question:")[0]
    asked = question.lower()
    named = {label.lower() for label in labels if label.lower() in sentence and label.lower() not in asked}
    right = answer.lower()
    return float(right in sentence and named <= {right})
