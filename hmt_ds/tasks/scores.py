"""Scores of answers as in public evaluations: exact match and F1 (SQuAD, LongBench), named label (BABILong)."""

import re
import string
from collections import Counter
from collections.abc import Collection

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> list[str]:
    """Return the words of an answer as SQuAD and LongBench compare them: lower case, no punctuation, no articles.

    Args:
        text: the answer.
    """
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return ARTICLES.sub(" ", plain).split()


def exact_match(found: str, answer: str) -> float:
    """Return 1.0 if a generated answer equals the right one except for case, punctuation and articles, else 0.0.

    Args:
        found: the generated answer.
        answer: the right answer.
    """
    return float(normalize(found) == normalize(answer))


def f1(found: str, answer: str) -> float:
    """Return the F1 (0 to 1) between the words of a generated answer and those of the right one, counting repeats.

    Args:
        found: the generated answer.
        answer: the right answer.
    """
    ours, theirs = Counter(normalize(found)), Counter(normalize(answer))
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total()) if common else 0.0


def names_only(found: str, answer: str, question: str, labels: Collection[str]) -> float:
    """Return 1.0 if an answer's first sentence names the right label and no other one, as BABILong scores, else 0.0.

    Labels that occur in the question may be repeated in the answer.

    Args:
        found: the generated answer.
        answer: the right label.
        question: the question.
        labels: all labels that could be answers, such as the names of rooms.
    """
    sentence = found.lower().strip().split(".")[0].split("question:")[0]
    asked = question.lower()
    named = {label.lower() for label in labels if label.lower() in sentence and label.lower() not in asked}
    right = answer.lower()
    return float(right in sentence and named <= {right})


def rouge_l(found: str, answer: str) -> float:
    """Return ROUGE-L (0 to 1) of a generated answer against the right one.

    It is the harmonic mean of precision and recall of the texts' longest common subsequence of words.

    Args:
        found: the generated answer.
        answer: the right answer.
    """
    ours, theirs = words(found), words(answer)
    row = [0] * (len(theirs) + 1)  # lengths of the longest common subsequences with the beginnings of the answer
    for word in ours:
        diagonal = 0
        for n, other in enumerate(theirs, start=1):
            diagonal, row[n] = row[n], diagonal + 1 if word == other else max(row[n], row[n - 1])
    return 2 * row[-1] / (len(ours) + len(theirs)) if row[-1] else 0.0


def words(text: str) -> list[str]:
    """Return the words of a text as ROUGE counts them: runs of letters and digits, in lower case.

    Args:
        text: the text.
    """
    return re.findall(r"[a-z0-9]+", text.lower())
