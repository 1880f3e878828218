"""A run on several sources, killed twice and resumed on other numbers of ranks, reads what an undisturbed run reads."""

import json
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset
from ranks import PROJECT
from tiny_recipe import finish, make_materials, signal_at, start_alone, write_recipe

STEPS, EVERY, ROWS = 28, 4, 4
SCRIPT = str(PROJECT / "tests/distributed/logged_documents.py")
SIZES = [7, 4, 9, 3]  # documents of the sources
WEIGHTS = [2, 1, 3, 1]

Steps = dict[tuple[int, int], list[Any]]  # what each row reads in each step


def make_sources(folder: Path) -> list[dict[str, Any]]:
    """Write sources of four formats and kinds of files."""
    text = (folder / "text.txt").read_text()
    pages = iter(text[at : at + 25 + at % 60] for at in range(100, 3000, 61))
    texts, questions, answers, chats = ([next(pages) for _ in range(size)] for size in SIZES)
    (folder / "texts.csv").write_text("body\n" + "".join('"' + page.replace('"', "") + '"\n' for page in texts))
    rows = [{"context": page, "input": "Who?", "answers": ["He"]} for page in questions]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list([{"prompt": page, "completion": " Yes."} for page in answers]).to_parquet(folder / "yes.parquet")
    conversations = [[{"role": "user", "content": page}, {"role": "assistant", "content": "No."}] for page in chats]
    Dataset.from_list([{"messages": chat} for chat in conversations]).save_to_disk(str(folder / "chats"))
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    sources: list[dict[str, Any]] = [
        {"source": "texts.csv", "text_field": "body"},
        {"source": "questions.jsonl", "format": "questions"},
        {"source": "yes.parquet", "format": "completion", "prompt_weight": 0.5},
        {"source": "chats", "format": "messages", "chat_template": str(folder / "chat.jinja")},
    ]
    whole = zip(sources, WEIGHTS, strict=True)
    return [one | {"source": str(folder / one["source"]), "weight": weight} for one, weight in whole]


def read(log: Path) -> Steps:
    """What each row reads in each step; a step that was taken again counts once, and is checked to be the same."""
    found: Steps = {}
    for file in log.glob("*/*.jsonl"):
        for line in file.read_text().splitlines():
            one = json.loads(line)
            assert found.setdefault((one["step"], one["row"]), one["pieces"]) == one["pieces"]
    return found


def begun_in(steps: Steps) -> list[tuple[int, ...]]:
    """The documents that begin, behind step, segment, row and number within the segment."""
    return [
        (step, n, row, at, document)
        for (step, row), pieces in steps.items()
        for n, (documents, _) in enumerate(pieces)
        for at, document in enumerate(documents)
    ]


def passes(steps: Steps) -> dict[int, list[int]]:
    """The documents of each source, in the order in which they were begun."""
    found, ends = defaultdict[int, list[int]](list), np.cumsum(SIZES)
    for *_, document in sorted(begun_in(steps)):
        found[int(np.searchsorted(ends, document, side="right"))].append(document)
    return found


def both_runs(folder: Path, data: list[str]) -> tuple[Steps, Steps]:
    """What a run reads that is killed on two ranks, on one, and ends on four; and what an undisturbed one reads."""
    recipe = write_recipe(folder, 1)
    words = [*data, "--checkpoint.every", str(EVERY), "--checkpoint.resume", "auto", "--training.steps", str(STEPS)]
    words += ["--training.max_bad_steps", "100"]

    def start(name: str, part: str, ranks: int) -> Any:
        (log := folder / f"{name}_read" / part).mkdir(parents=True)
        run = [SCRIPT, str(recipe), "--training.output", str(folder / name), *words]
        return start_alone(*run, "--training.batch_size", str(ROWS // ranks), ranks=ranks, DOCUMENTS_LOG=str(log))

    for part, ranks, kill in (("first", 2, 6), ("second", 1, 15), ("third", 4, None)):
        with start("killed", part, ranks) as run:
            if kill:
                signal_at(run, lambda _, ranks=run.ranks: ranks, signal.SIGKILL, folder / "killed", kill)
            code, printed = finish(run)
            assert bool(code) == bool(kill), printed
    with start("undisturbed", "all", 2) as run:
        code, printed = finish(run)
        assert code == 0, printed
    found = read(folder / "killed_read"), read(folder / "undisturbed_read")
    again = sum(len(file.read_text().splitlines()) for file in (folder / "killed_read").glob("*/*.jsonl"))
    assert again > len(found[1])  # steps behind a checkpoint were lost with the kills, and taken again
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pack", ["false", "true"])
def test_killed_and_resumed_on_one_and_on_four_ranks(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    make_materials(tmp_path)
    words = ["--data.train", json.dumps(make_sources(tmp_path)), "--data.pack", pack]
    disturbed, expected = both_runs(tmp_path, words)
    assert len(expected) == STEPS * ROWS and disturbed == expected
    for source, documents in passes(disturbed).items():
        size, first = SIZES[source], sum(SIZES[:source])
        assert len(documents) > 2 * size, f"source {source} was not read twice"
        for at in range(0, len(documents), size):
            one = documents[at : at + size]
            assert len(set(one)) == len(one) and set(one) <= set(range(first, first + size))


@pytest.mark.slow
def test_a_stream_killed_and_resumed_on_one_and_on_four_ranks(tmp_path, monkeypatch):
    """Every pass reads all documents once, part after part, as an undisturbed run does."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    make_materials(tmp_path)
    text = (tmp_path / "text.txt").read_text()
    rows = [{"text": text[at : at + 25 + at % 60]} for at in range(100, 100 + 61 * 32, 61)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data.train", json.dumps({"source": str(tmp_path / "rows.jsonl")}), "--data.stream", "12"]
    disturbed, expected = both_runs(tmp_path, words)
    assert len(expected) == STEPS * ROWS and disturbed == expected
    begun = [document for *_, document in sorted(begun_in(disturbed))]
    assert len(begun) > 2 * len(rows)
    for at in range(0, len(begun) - len(rows), len(rows)):
        assert sorted(begun[at : at + len(rows)]) == list(range(len(rows)))
