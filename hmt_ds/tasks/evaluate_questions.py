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
    """One line of a file.

    Attributes:
        text: the document.
        question: text that the answer follows.
        answers: right answers, of which the best one counts.
    """

    text: str
    question: str
    answers: list[str]


@dataclass(frozen=True)
class Answered:
    """One answer, as it is written to JSON: the line's number from 1, the reading, the text, and its scores."""

    line: int
    reading: str
    found: str
    answers: list[str]
    scores: dict[str, float]


def evaluate_questions(source: Path, options: TaskOptions) -> None:
    """Print mean scores by reading; write every answer, if asked.

    Raises:
        ConversionError: or another of ``hmt_ds.conversion.convert.MISTAKES``, with a line for each problem.
    """
    assert options.questions is not None
    questions = list(read_questions(options.questions))
    if len(questions) < 2:
        raise ConversionError(f"--questions: {options.questions} has {len(questions)} questions, at least 2 are needed")
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
    """Read questions, one JSON object per line; blank lines are left out.

    Raises:
        ConversionError: naming the first line that cannot be read, and why.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"--questions: {file} cannot be read as text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, question, answers = row["context"], row.get("input", ""), row["answers"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else "is not a JSON object"
            raise ConversionError(f"--questions: {file}, line {number} {reason}") from None
        answers = [answers] if isinstance(answers, str) else answers
        if not (isinstance(text, str) and text.strip() and isinstance(question, str) and is_texts(answers)):
            raise ConversionError(f"--questions: {file}, line {number}: context is text, answers a list of texts")
        yield Question(text, f" Question: {question} Answer:" if question else " Answer:", answers)


def is_texts(value: object) -> bool:
    """Return whether a value is a list of texts, with at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)


def scores_of(found: str, answers: Sequence[str]) -> dict[str, float]:
    """Return each score of an answer against the right answer that it is most like."""
    return {name: max(score(found, answer) for answer in answers) for name, score in SCORES.items()}


def scores_table(answered: Sequence[Answered], readings: Sequence[str]) -> Table:
    """Return mean scores in percent with 95% intervals over questions, a row for each reading."""
    table = Table("reading", "questions", *SCORES, title="mean scores in percent, with 95% intervals")
    for reading in readings:
        rows = np.array([list(one.scores.values()) for one in answered if one.reading == reading])
        means = mean_intervals(100 * rows, np.ones_like(rows))
        table.add_row(reading, str(len(rows)), *(f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in means))
    return table
