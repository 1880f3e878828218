"""Convert rows of well-known data sets (Qasper, NarrativeQA, ...) from their columns on the hub to those of a format.

Each function takes all rows in order and yields rows with the columns that :mod:`hmt_ds.data.formats` expects.
Questions on one document become one row, so that the document is read once.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from datasets import Dataset, Features, List, Value

from hmt_ds.data.errors import RowError
from hmt_ds.data.settings import NAMED, DatasetName, FormatName

Row = Mapping[str, Any]
TEXT = Value("string")
# Else `datasets` would take the kinds of the first 1,000 rows, which may all be absent.
FEATURES: dict[FormatName, Features] = {
    "text": Features({"text": TEXT}),
    "questions": Features({"context": TEXT, "input": List(TEXT), "answers": List(TEXT)}),
    "messages": Features({"messages": List({"role": TEXT, "content": TEXT})}),
}
Rows = Iterable[Row]
VERSION = 2  # of this file's functions: what they made before is not taken from a cache
TITLE = re.compile(r"\s*= [^=].* =\s*")  # the first line of a Wikipedia article; " = = Section = = " has more signs


def convert(documents: Dataset, name: DatasetName) -> Dataset:
    """Convert the rows of a well-known data set to the columns of its document format, cached by the `datasets`
    library.

    Args:
        documents: Rows with the data set's own columns, as on the hub.
        name: Name of the data set, such as `qasper`.

    Raises:
        RowError: A row does not have the data set's structure.
    """
    rows_of = CONVERTERS[name]
    fingerprint = hashlib.sha256(f"{documents._fingerprint} {name} {VERSION}".encode()).hexdigest()[:32]
    failed: list[RowError] = []

    def generate() -> Iterator[Row]:
        read = 0

        def counted() -> Iterator[Row]:
            nonlocal read
            for row in documents:
                read += 1
                yield row

        try:
            yield from rows_of(counted())
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            failed.append(
                RowError(
                    read - 1, f"it does not have the columns of {name} ({type(error).__name__}: {error}): check dataset"
                )
            )
            raise

    try:
        return Dataset.from_generator(generate, features=FEATURES[NAMED[name].format], fingerprint=fingerprint)
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def texts(column: str) -> Callable[[Rows], Iterator[Row]]:
    """Return a function that converts a data set's rows to rows `{"text": ...}`.

    Args:
        column: The column that holds the text.
    """

    def rows_of(rows: Rows) -> Iterator[Row]:
        return ({"text": row[column]} for row in rows)

    return rows_of


def wikitext(rows: Rows) -> Iterator[Row]:
    """Yield the articles of Wikitext as rows `{text}`; its rows are lines, and an article begins with ` = Title = `."""
    article: list[str] = []
    for row in rows:
        if TITLE.fullmatch(row["text"]) and any(line.strip() for line in article):
            yield {"text": "".join(article)}
            article = []
        article.append(row["text"])
    yield {"text": "".join(article)}


def pubmedqa(answer: str) -> Callable[[Rows], Iterator[Row]]:
    """Return a function that converts PubMedQA's rows to rows `{context, input, answers}`, one question on each
    document.

    Args:
        answer: Column of the answer: `long_answer`, or `final_decision` (yes, no or maybe).
    """

    def rows_of(rows: Rows) -> Iterator[Row]:
        for row in rows:
            yield one_question("\n".join(row["context"]["contexts"]), row["question"], row[answer])

    return rows_of


def musique(rows: Rows) -> Iterator[Row]:
    """Yield MuSiQue's rows as rows `{context, input, answers}`; a document is all paragraphs, each behind its title."""
    for row in rows:
        paragraphs = (f"{one['title']}\n{one['paragraph_text']}" for one in row["paragraphs"])
        yield one_question("\n\n".join(paragraphs), row["question"], row["answer"])


def qmsum(rows: Rows) -> Iterator[Row]:
    """Yield QMSum's meetings as rows `{context, input, answers}`: the turns, with all general and specific queries."""
    for row in rows:
        turns = (f"{turn['speaker']}: {turn['content']}" for turn in row["meeting_transcripts"])
        asked = [*(row["general_query_list"] or []), *(row["specific_query_list"] or [])]
        yield many_questions("\n".join(turns), [(one["query"], one["answer"]) for one in asked])


def narrativeqa(rows: Rows) -> Iterator[Row]:
    """Yield NarrativeQA's stories as rows `{context, input, answers}`, made of consecutive rows on the same story."""
    for _, same in groupby(rows, key=lambda row: row["document"]["id"]):
        story = list(same)
        asked = [(row["question"]["text"], row["answers"][0]["text"]) for row in story]
        yield many_questions(story[0]["document"]["text"], asked)


def qasper(rows: Rows) -> Iterator[Row]:
    """Yield Qasper's papers as rows `{context, input, answers}`: all questions, and the first annotator's answers."""
    for row in rows:
        sections = zip(row["full_text"]["section_name"], row["full_text"]["paragraphs"], strict=True)
        body = ["\n".join([name or "", *paragraphs]).strip() for name, paragraphs in sections]
        paper = "\n\n".join([row["title"], row["abstract"], *body])
        answers = [qasper_answer(given["answer"][0]) for given in row["qas"]["answers"]]
        yield many_questions(paper, list(zip(row["qas"]["question"], answers, strict=True)))


def qasper_answer(answer: Row) -> str:
    """Return an answer of Qasper as text: free words, words of the paper joined by commas, yes, no, `unanswerable`."""
    if answer["unanswerable"]:
        return "unanswerable"
    if answer["yes_no"] is not None and not answer["extractive_spans"] and not answer["free_form_answer"]:
        return "yes" if answer["yes_no"] else "no"
    return answer["free_form_answer"] or ", ".join(answer["extractive_spans"])


def longbench(rows: Rows) -> Iterator[Row]:
    """Yield LongBench's rows as rows `{context, input, answers}`, with the first of several right answers."""
    return (one_question(row["context"], row["input"], first_of(row["answers"])) for row in rows)


def babilong(rows: Rows) -> Iterator[Row]:
    """Yield BABILong's rows as rows `{context, input, answers}`, one question on each document."""
    return (one_question(row["input"], row["question"], row["target"]) for row in rows)


def chatqa2(rows: Rows) -> Iterator[Row]:
    """Yield ChatQA2-Long-SFT's conversations as rows `{messages}`: the document is the system message, the answer the
    last one."""
    for row in rows:
        system = [{"role": "system", "content": row["document"]}] if row["document"] else []
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
        yield {"messages": [*system, *turns, {"role": "assistant", "content": first_of(row["answers"])}]}


def first_of(answers: list[str]) -> str:
    """Return the first right answer of a list of answers.

    Args:
        answers: The right answers to one question.

    Raises:
        ValueError: `answers` is empty or not a list (the first item of a text would be a letter).
    """
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"answers must be a list of at least one text, not {answers!r:.80}")
    return answers[0]


def one_question(document: str, question: str, answer: str) -> Row:
    """Return a row `{context, input, answers}` with one question and its answer on a document."""
    return many_questions(document, [(question, answer)])


def many_questions(document: str, asked: list[tuple[str, str]]) -> Row:
    """Return a row `{context, input, answers}` with several questions on one document.

    Args:
        document: The text.
        asked: Pairs of a question and its answer.

    Raises:
        ValueError: There is no question.
    """
    if not asked:
        raise ValueError("a document needs at least one question, but has none")
    return {
        "context": document,
        "input": [question for question, _ in asked],
        "answers": [answer for _, answer in asked],
    }


CONVERTERS: dict[DatasetName, Callable[[Rows], Iterator[Row]]] = {
    "wikitext-103": wikitext,
    "pg19": texts("text"),
    "redpajama-v2": texts("raw_content"),
    "pubmedqa-long": pubmedqa("long_answer"),
    "pubmedqa-short": pubmedqa("final_decision"),
    "musique": musique,
    "qmsum": qmsum,
    "narrativeqa": narrativeqa,
    "qasper": qasper,
    "longbench": longbench,
    "chatqa2-long-sft": chatqa2,
    "babilong": babilong,
}
