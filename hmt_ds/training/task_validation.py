"""Evaluate question-answering tasks in a run: ask about generated documents, and log the fractions of right answers."""

import json
import logging
import math
import sys
from pathlib import Path

from rich.console import Console

from hmt_ds.data import document_lengths, tokens_sha256
from hmt_ds.data.stories import CHANCE
from hmt_ds.data.task_documents import TaskDocuments
from hmt_ds.distributed.process_group import rank
from hmt_ds.evaluation.answers import counting_misses, right_answers
from hmt_ds.evaluation.files import evaluation_file
from hmt_ds.evaluation.read_documents import document_losses
from hmt_ds.memory.boundaries import Instead
from hmt_ds.reporting.evaluation_tables import WIDTH
from hmt_ds.reporting.log import log_seconds
from hmt_ds.reporting.task_tables import TaskFigures, plot_places, tasks_table, wilson
from hmt_ds.training.evaluation_in_run import EvaluationInRun, warn_if_unwritable

logger = logging.getLogger(__name__)

READINGS = {"own": "memory", "swapped": "swapped", "none": "empty"}  # named as by hmt-ds evaluate --tasks


class TaskValidation(EvaluationInRun):
    """Evaluates the question-answering tasks of ``evaluation.tasks`` on documents that are generated for them."""

    @property
    def every(self) -> int | None:
        """Number of optimizer steps between two evaluations; None to evaluate only at the end of training."""
        return self.recipe.evaluation.tasks_every or self.recipe.evaluation.every

    def evaluate(self, step: int, *, in_passing: bool = False) -> dict[str, float]:
        """Ask the questions of all tasks; print the fractions of right answers, and write them to the run's folder.

        Does nothing if the recipe has no evaluation.tasks. All ranks must call it.

        Args:
            step: optimizer step of the weights.
            in_passing: read only with each document's own memories, as during training; otherwise also with another
                document's memories and without any.

        Returns:
            ``evaluation/TASK/TOKENS``, the fraction of right answers (0 to 1), and for other memories
            ``evaluation/TASK/TOKENS/swapped`` and ``/empty``; only on rank 0.
        """
        if not self.prepared.task_documents:
            return {}
        instead = [] if in_passing else self.instead
        with log_seconds(logger, "evaluating tasks"):
            found = [self.ask(documents, instead) for documents in self.prepared.task_documents]
        if rank() != 0:
            return {}
        self.report(step, found)
        return {
            "/".join(["evaluation", row.task, str(row.length), *([] if name == "memory" else [name])]): mean(right)
            for row in found
            for name, right in row.right.items()
        }

    def ask(self, documents: TaskDocuments, instead: list[Instead]) -> TaskFigures:
        """Ask the questions of one task on documents of one length; all ranks must call it.

        Args:
            documents: the tokenized documents, with questions and answers.
            instead: memories to read the documents with once more: ``swapped`` (another document's) or ``none``.
        """
        depth = math.ceil(document_lengths(documents.tokens).max() / self.recipe.memory.segment_length)
        with counting_misses(self.reader):
            windows, number = self.windows(documents.tokens), len(documents.tokens)
            right = right_answers(document_losses(self.reader, windows, number, depth, instead))
        places: list[list[float]] = [[] for _ in range(10)]
        for place, one in zip(documents.places, right["own"], strict=True):
            places[min(9, int(place * 10))].append(one)
        named = {READINGS[name]: answers for name, answers in right.items() if answers}
        return TaskFigures(documents.task, documents.length, number, CHANCE[documents.task], named, places)

    def report(self, step: int, found: list[TaskFigures]) -> None:
        """Print a table of right answers to tasks, and write results and a picture into the run's folder.

        Args:
            step: optimizer step of the weights.
            found: the answers to each task at each length.
        """
        table = tasks_table(found)
        table.title = f"tasks after step {step}: {table.title}"
        Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
        data = {
            "sha256": "".join(tokens_sha256(documents.tokens)[:16] for documents in self.prepared.task_documents),
            "tokenizer": self.prepared.tokenizer,
        }
        folder = Path(self.recipe.training.output) / "evaluation"
        file = evaluation_file(folder, step, str(data["sha256"]), own=self.own_data, prefix="tasks_")
        with warn_if_unwritable(file):
            folder.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(".part")
            aside.write_text(json.dumps({"step": step, "data": data, "tasks": list(map(as_json, found))}, indent=1))
            aside.replace(file)
            plot_places(found, file.with_suffix(".png"))
            print(f"tasks       {file} and .png", flush=True)


def mean(right: list[float]) -> float:
    """Return the mean of a list of answers' scores, 1 for a right and 0 for a wrong answer.

    Args:
        right: the scores, at least one.
    """
    return sum(right) / len(right)


def as_json(row: TaskFigures) -> dict[str, object]:
    """Return the answers to one task at one length as JSON values; a fraction is a list of mean, low and high end.

    Args:
        row: the answers.
    """
    shares = {name: [mean(right), *wilson(sum(right), len(right))] for name, right in row.right.items()}
    whole = {"task": row.task, "length": row.length, "documents": row.documents, "chance": row.chance}
    return whole | {"right": shares}
