"""Generated documents of question-answering tasks as tokens; only the answer at the end counts in the loss."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hmt_ds.data.formats import Format
from hmt_ds.data.haystack import Haystack
from hmt_ds.data.settings import TaskName
from hmt_ds.data.tokenize import WEIGHTED

ANSWERS = Format("questions")  # tokens outside the answers have weight 0


@dataclass(frozen=True)
class TaskDocuments:
    """The tokenized documents of one question-answering task (such as ``babilong-qa1``) and length.

    Attributes:
        task: Name of the task.
        length: Tokens of a document, about; not counting question and answer.
        tokens: `input_ids`, `length` and `weights` of each document, its question and its answer; the answer's tokens
            have weight 1, all others 0.
        places: Where the last fact that the answer needs begins in each document, as a fraction of it (0 to 1).
    """

    task: TaskName
    length: int
    tokens: Dataset
    places: list[float]


def encode_tasks(
    names: list[TaskName], lengths: list[int], documents: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[TaskDocuments, ...]:
    """Generate and tokenize documents of question-answering tasks; equal arguments give equal documents, on every rank.

    The facts are hidden among the sentences of a novel that documents for training (`hmt-ds tasks`) never use.

    Args:
        names: Names of the tasks; repeated ones are taken once.
        lengths: Lengths of the documents in tokens.
        documents: Number of documents of each task and length.
        tokenizer: A fast tokenizer.

    Returns:
        The documents of each task and length, lengths of a task next to each other.

    Raises:
        DataError: The tokenizer is not a fast one, so that answers cannot be told from other tokens.
    """
    ANSWERS.check(tokenizer)
    haystack = Haystack(tokenizer, "test")
    return tuple(encode_task(haystack, name, n, documents) for name in dict.fromkeys(names) for n in lengths)


def encode_task(haystack: Haystack, name: TaskName, length: int, documents: int) -> TaskDocuments:
    """Generate and tokenize the documents of one question-answering task and length.

    Args:
        haystack: Makes the documents.
        name: Name of the task.
        length: Tokens of a document.
        documents: Number of documents.
    """
    tasks = [haystack.task(name, length, seed) for seed in range(documents)]
    rows: dict[str, list[Any]] = {
        "context": [task.text for task in tasks],
        "input": [task.story.question for task in tasks],
        "answers": [[task.story.answer] for task in tasks],
    }
    ids, weights = ANSWERS.encode(rows, 0, haystack.tokenizer, eos=None)
    columns = {"input_ids": ids, "length": [len(one) for one in ids], "weights": weights}
    return TaskDocuments(name, length, Dataset.from_dict(columns, WEIGHTED), [task.place for task in tasks])
