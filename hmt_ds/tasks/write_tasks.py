"""`hmt-ds tasks`: write generated documents with questions and answers as a file to train on."""

import json
from collections.abc import Sequence

from tqdm import tqdm

from hmt_ds.data import load_tokenizer
from hmt_ds.data.haystack import Haystack, Task
from hmt_ds.tasks.options import WriteOptions


def write_tasks(names: Sequence[str], options: WriteOptions) -> int:
    """Write generated documents, each with its question and answer at the end, as a .jsonl file to train on.

    Each row fits the formats ``text`` and ``questions`` of training data. The facts are hidden in another novel than in
    ``hmt-ds evaluate --tasks``, so no document is equal.

    Args:
        names: names of the tasks, such as ``babilong-qa1``; documents of all tasks alternate.
        options: output file, document lengths in tokens, number of documents of each task, seed and tokenizer.

    Returns:
        The number of documents written.

    Raises:
        DataError: the tokenizer cannot be loaded.
        OSError: the file cannot be written.
    """
    assert options.output is not None and options.tokenizer is not None
    haystack = Haystack(load_tokenizer(options.tokenizer), "train")
    lengths = options.lengths
    partial = options.output.with_name(f".{options.output.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for number in tqdm(range(options.documents), unit="document", desc="writing", leave=False, disable=None):
            for name in names:
                seed = -1 - options.seed * 1_000_000 - number  # those of evaluations are not negative
                task = haystack.task(name, lengths[number % len(lengths)], seed)
                file.write(json.dumps(row_of(task) | {"task": name}, ensure_ascii=False) + "\n")
    partial.replace(options.output)
    return options.documents * len(names)


def row_of(task: Task) -> dict[str, object]:
    """Return a generated document with its question as a row of training data.

    The row fits the formats ``text``, where all tokens are learnt, and ``questions``, whose columns are ``context``,
    ``input`` and ``answers``, and where only the answer is learnt. In both the prompt is that of evaluations.

    Args:
        task: the document with its question.
    """
    story = task.story
    row: dict[str, object] = {"context": task.text, "input": story.question, "answers": [story.answer]}
    return {"text": f"{task.text}{task.question} {story.answer}."} | row
