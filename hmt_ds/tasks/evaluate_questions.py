"""`hmt-ds evaluate SOURCE --questions FILE`: ask the questions of a file about its documents, and score the answers."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.evaluation.bootstrap import mean_intervals
from hmt_ds.generation.model import load_model
from hmt_ds.generation.options import ChatOptions
from hmt_ds.generation.reading import encode
from hmt_ds.reporting.evaluation_tables import WIDTH
from hmt_ds.tasks.options import TaskOptions
from hmt_ds.tasks.readings import Readings
from hmt_ds.tasks.scores import exact_match, f1, rouge_l

SCORES: dict[str, Callable[[str, str], float]] = {"exact match": exact_match, "F1": f1, "ROUGE-L": rouge_l}


class Question(NamedTuple):
    """A document and a question about it, from one line of a file.

    Attributes:
        text: the document.
        question: text that follows the document and ends in ``Answer:``.
        answers: right answers; of the scores against each, the highest counts.
    """

    text: str
    question: str
    answers: list[str]


@dataclass(frozen=True)
class Answered:
    """A model's answer to one question, with scores, as written to JSON.

    Attributes:
        line: number of the question in its file, from 1.
        reading: how the document was read: with its memories (``memory``), another document's (``swapped``) or none
            (``empty``), or by the backbone alone: its last tokens (``truncated``) or all (``full``).
        found: the text that the model generated.
        answers: the right answers.
        scores: from 0 to 1, by name: ``exact match``, ``F1`` and ``ROUGE-L``.
    """

    line: int
    reading: str
    found: str
    answers: list[str]
    scores: dict[str, float]


def evaluate_questions(source: Path, options: TaskOptions) -> None:
    """Ask a model the questions of a file, and print its mean scores for each way of reading the documents.

    Args:
        source: folder of a run, one of its checkpoints, or a folder that ``hmt-ds convert`` wrote.
        options: the file of questions, the ways of reading, and the JSON file to write all answers to, if any.

    Raises:
        ConversionError: the model or the questions cannot be read; with a line for each problem.
        BackboneError, CheckpointError, ConfigError, DataError: backbone, checkpoint, recipe or tokenizer is wrong.
    """
    assert options.questions is not None
    questions = list(read_questions(options.questions))
    if len(questions) < 2:
        raise ConversionError(
            f"--questions: {options.questions} has {len(questions)} questions, but at least 2 are needed: add some"
        )
    asked = load_model(source, ChatOptions(tokenizer=options.tokenizer, dtype=options.dtype))
    readings = Readings(asked, options.readings, options.answer_tokens)
    if "full" in options.readings:
        readings.check(max(len(encode(asked.tokenizer, one.text + one.question, begins=True)) for one in questions))
    answered: list[Answered] = []
    with tqdm(total=len(questions), unit="question", desc="asking", leave=False, disable=None) as bar:
        for lines in np.array_split(np.arange(len(questions)), max(1, len(questions) // options.batch)):
            batch = [questions[line] for line in lines]
            for reading, texts in readings.answers(batch).items():
                answered += [
                    Answered(int(line) + 1, reading, found, one.answers, scores_of(found, one.answers))
                    for line, one, found in zip(lines, batch, texts, strict=True)
                ]
            bar.update(len(batch))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(scores_table(answered, options.readings))
    if options.json is not None:
        content = {"source": source.name, "questions": options.questions.name, "answers": list(map(asdict, answered))}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_questions(file: Path) -> Iterator[Question]:
    """Read questions from a file with one JSON object per line, skipping blank lines.

    Args:
        file: each line has the keys ``context`` (the document), ``answers`` (a text or a list of texts) and,
            optionally, ``input`` (the question). If ``input`` is a list of questions, ``answers`` has as many items,
            and each question is asked behind the document alone.

    Raises:
        ConversionError: a line cannot be read; the message names the first such line and why.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"--questions: {file} cannot be read as UTF-8 text ({error}): name a .jsonl file"
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, question, answers = row["context"], row.get("input", ""), row["answers"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"has no key {error}" if isinstance(error, KeyError) else "is not a JSON object"
            raise ConversionError(
                f'--questions: {file}, line {number} {reason}: write {{"context": ..., "answers": [...]}}'
            ) from None
        several = isinstance(question, list) and isinstance(answers, list) and len(question) == len(answers)
        for one, right in zip(question, answers, strict=True) if several else [(question, answers)]:
            right = [right] if isinstance(right, str) else right
            if not (isinstance(text, str) and text.strip() and isinstance(one, str) and is_texts(right)):
                raise ConversionError(
                    f"--questions: {file}, line {number}: context and input must be texts, answers a text or a list "
                    "of texts; or input and answers lists of equal length: correct the line"
                )
            yield Question(text, f" Question: {one} Answer:" if one else " Answer:", right)


def is_texts(value: object) -> bool:
    """Return whether a value is a non-empty list of strings.

    Args:
        value: any value from a JSON file.
    """
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)


def scores_of(found: str, answers: Sequence[str]) -> dict[str, float]:
    """Return the scores of an answer, 0 to 1, by name: ``exact match``, ``F1`` and ``ROUGE-L``.

    Of the scores against each right answer, the highest is taken.

    Args:
        found: the model's answer.
        answers: the right answers, at least one.
    """
    return {name: max(score(found, answer) for answer in answers) for name, score in SCORES.items()}


def scores_table(answered: Sequence[Answered], readings: Sequence[str]) -> Table:
    """Make a table of mean scores in percent, with 95% intervals over the questions.

    Args:
        answered: the scored answers.
        readings: ways in which the documents were read, such as ``memory``; each gets a row.
    """
    table = Table("reading", "questions", *SCORES, title="mean scores in percent, with 95% intervals")
    for reading in readings:
        rows = np.array([list(one.scores.values()) for one in answered if one.reading == reading])
        means = mean_intervals(100 * rows, np.ones_like(rows))
        table.add_row(reading, str(len(rows)), *(f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in means))
    return table
