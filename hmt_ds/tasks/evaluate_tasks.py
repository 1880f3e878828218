"""`hmt-ds evaluate SOURCE --tasks ...`: generate documents, ask a model about them, and score the answers."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from tqdm import tqdm

from hmt_ds.data.haystack import Haystack, Task
from hmt_ds.data.stories import CHANCE
from hmt_ds.generation.model import load_model
from hmt_ds.generation.options import ChatOptions
from hmt_ds.reporting.evaluation_tables import WIDTH
from hmt_ds.reporting.task_tables import TaskFigures, plot_places, tasks_table
from hmt_ds.tasks.options import TaskOptions
from hmt_ds.tasks.readings import Readings
from hmt_ds.tasks.scores import exact_match, f1, names_only

PLACES = 10  # parts of a document in the heat map


@dataclass(frozen=True)
class Answer:
    """A model's answer to the question about one generated document, with scores, as written to JSON.

    Attributes:
        task: name of the task, such as ``babilong-qa1``.
        length: tokens of the document.
        place: where the last fact that the answer needs begins, as a fraction of the document (0 to 1).
        reading: how the document was read: with its memories (``memory``), another document's (``swapped``) or none
            (``empty``), or by the backbone alone: its last tokens (``truncated``) or all (``full``).
        question: the question.
        expected: the right answer.
        found: the first line that the model generated.
        right: 1 if the answer names the right word and no other possible answer, as BABILong scores, else 0.
        exact_match: 1 if the answers are equal after normalization, as SQuAD scores, else 0.
        f1: F1 of the answer's words, from 0 to 1, as SQuAD and LongBench score.
    """

    task: str
    length: int
    place: float
    reading: str
    question: str
    expected: str
    found: str
    right: float
    exact_match: float
    f1: float


def evaluate_tasks(source: Path, options: TaskOptions) -> None:
    """Ask a model about generated documents, and print the percentage of right answers by task, length and way of
    reading.

    A document can be read with its own memories, with another document's, or by the backbone alone. All answers are
    also written as JSON, and a heat map is drawn, if the options name files for them.

    Args:
        source: folder of a run, one of its checkpoints, or a folder that ``hmt-ds convert`` wrote.
        options: tasks, lengths, ways of reading, and files to write.

    Raises:
        ConversionError: the model cannot be read or a document is too long; with a line for each problem.
        BackboneError, CheckpointError, ConfigError, DataError: backbone, checkpoint, recipe or tokenizer is wrong.
    """
    asked = load_model(source, ChatOptions(tokenizer=options.tokenizer, dtype=options.dtype))
    readings, haystack = Readings(asked, options.readings, options.answer_tokens), Haystack(asked.tokenizer, "test")
    for length in options.lengths:
        readings.check(length)
    answers: list[Answer] = []
    total = len(options.tasks) * len(options.lengths) * options.samples
    with tqdm(total=total, unit="document", desc="asking", leave=False, disable=None) as bar:
        for name in options.tasks:
            for length in options.lengths:
                for batch in batches(haystack, name, length, options):
                    answers += score(name, length, batch, readings)
                    bar.update(len(batch))
    figures = [
        figures_of(answers, name, length, options.readings) for name in options.tasks for length in options.lengths
    ]
    Console(width=None if sys.stdout.isatty() else WIDTH).print(tasks_table(figures))
    if options.json is not None:
        content = {"source": source.name, "seed": options.seed, "answers": [vars(answer) for answer in answers]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.picture is not None:
        plot_places(figures, options.picture)


def batches(haystack: Haystack, name: str, length: int, options: TaskOptions) -> Iterator[list[Task]]:
    """Yield the generated documents of one task and length in batches of at least two.

    One document is not enough, because each is also read with the memories of another document in its batch.

    Args:
        haystack: makes the documents.
        name: name of the task, such as ``babilong-qa1``.
        length: tokens of a document.
        options: number of documents, batch size and seed.
    """
    numbers = options.seed * 1_000_000 + np.arange(options.samples)
    for part in np.array_split(numbers, max(1, options.samples // options.batch)):
        yield [haystack.task(name, length, int(seed)) for seed in part]


def score(name: str, length: int, tasks: Sequence[Task], readings: Readings) -> Iterator[Answer]:
    """Ask about a batch of documents, and yield a scored answer for each document and each way of reading it.

    Ways of reading are, for example, with the document's memories, with another document's, or by the backbone alone.

    Args:
        name: name of the task, such as ``babilong-qa1``.
        length: tokens of a document.
        tasks: the documents with their questions.
        readings: the model, and the ways in which it reads documents.
    """
    for reading, texts in readings.answers(tasks).items():
        for task, text in zip(tasks, texts, strict=True):
            story, found = task.story, (text.splitlines() or [""])[0]
            yield Answer(
                task=name,
                length=length,
                place=round(task.place, 4),
                reading=reading,
                question=story.question,
                expected=story.answer,
                found=found,
                right=names_only(found, story.answer, story.question, story.labels),
                exact_match=exact_match(found.split(".")[0], story.answer),
                f1=f1(found, story.answer),
            )


def figures_of(answers: Sequence[Answer], name: str, length: int, readings: Sequence[str]) -> TaskFigures:
    """Summarize the answers to one task at one document length, by way of reading the documents and by place of the
    fact.

    Args:
        answers: all answers, of any task and length.
        name: name of the task, such as ``babilong-qa1``.
        length: tokens of a document.
        readings: ways in which the documents were read, such as ``memory``; the places are those of the first one.
    """
    own = [answer for answer in answers if (answer.task, answer.length) == (name, length)]
    right = {reading: [answer.right for answer in own if answer.reading == reading] for reading in readings}
    places: list[list[float]] = [[] for _ in range(PLACES)]
    for answer in own:
        if answer.reading == readings[0]:
            places[min(PLACES - 1, int(answer.place * PLACES))].append(answer.right)
    return TaskFigures(name, length, len(own) // len(readings), CHANCE[name], right, places)
