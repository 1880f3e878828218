"""Generated tasks: stories against a reader of their text, scores against the public definitions, and readings."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from bad_folder import errors_in
from test_generate_command import write_tokenizer
from tiny import GPT2, LLAMA, L, document
from tiny_folder import write_tiny

from hmt_ds import cli
from hmt_ds.data import load_tokenizer
from hmt_ds.data.formats import PARTS
from hmt_ds.data.haystack import Haystack
from hmt_ds.data.stories import TASKS, Story
from hmt_ds.generation.model import load_model
from hmt_ds.generation.options import ChatOptions
from hmt_ds.reporting.task_tables import wilson
from hmt_ds.tasks.readings import CHANGES, Readings
from hmt_ds.tasks.scores import exact_match, f1, names_only
from hmt_ds.tasks.write_tasks import row_of

ADAPTED = {"interface": "adapted", "recalled_memories": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Converted folders with tokenizers."""
    root = tmp_path_factory.mktemp("tasks")
    write_tokenizer(write_tiny(root / "hf", LLAMA | {"vocab_size": 400, "eos_token_id": 1}, **ADAPTED))
    write_tokenizer(write_tiny(root / "gpt2", GPT2 | {"vocab_size": 400, "eos_token_id": 1}, **ADAPTED))
    return root


def trails(facts: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Where each person is, and the places of each thing, by reading sentences in order."""
    where: dict[str, str] = {}
    holder: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    for fact in facts:
        if found := re.fullmatch(r"(\w+) (?:moved|went|journeyed|travelled|went back) to the (\w+)\.", fact):
            where[found[1]] = found[2]
            for thing in [thing for thing, person in holder.items() if person == found[1]]:
                places[thing].append(found[2])
        elif found := re.fullmatch(r"(\w+) (?:took|got|grabbed|picked up) the (\w+) there\.", fact):
            assert found[2] not in holder and (not places.get(found[2]) or places[found[2]][-1] == where[found[1]])
            holder[found[2]] = found[1]
            places.setdefault(found[2], [where[found[1]]])
        elif found := re.fullmatch(r"(\w+) (?:dropped|discarded|put down|left) the (\w+)\.", fact):
            assert holder.pop(found[2]) == found[1]
        else:
            assert re.fullmatch(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.", fact), fact
    return where, places


def read_person(story: Story) -> str:
    return trails(story.facts)[0][story.question[len("Where is ") : -1]]


def read_thing(story: Story) -> str:
    return trails(story.facts)[1][story.question[len("Where is the ") : -1]][-1]


def read_before(story: Story) -> str:
    found = re.fullmatch(r"Where was the (\w+) before the (\w+)\?", story.question)
    assert found is not None
    *_, before, place = trails(story.facts)[1][found[1]]
    assert place == found[2]
    return before


def read_relation(story: Story) -> str:
    """From all relations and their inverses."""
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}
    known = {}
    for fact in story.facts:
        one, way, other = re.fullmatch(r"The (\w+) is (\w+) of the (\w+)\.", fact).groups()  # type: ignore[union-attr]
        known[way, other] = one
        known[back[way], one] = other
    if found := re.fullmatch(r"What is (\w+) of the (\w+)\?", story.question):
        return known[found[1], found[2]]
    place, way = re.fullmatch(r"What is the (\w+) (\w+) of\?", story.question).groups()  # type: ignore[union-attr]
    return known[back[way], place]


def read_gift(story: Story) -> str:
    """From the last gift."""
    gifts = [found for fact in story.facts if (found := re.fullmatch(r"(\w+) \w+ the (\w+) to (\w+)\.", fact))]
    giver, thing, taker = next(gift.groups() for gift in reversed(gifts) if gift[2] in ("apple", "football", "milk"))
    answers = {
        f"Who gave the {thing} to {taker}?": giver,
        f"Who did {giver} give the {thing} to?": taker,
        f"What did {giver} give to {taker}?": thing,
        f"Who received the {thing}?": taker,
    }
    return answers[story.question]


READERS: dict[str, Callable[[Story], str]] = {
    "passkey": lambda story: re.findall(r"\d{5}", story.facts[0])[-1],
    "babilong-qa1": read_person,
    "babilong-qa2": read_thing,
    "babilong-qa3": read_before,
    "babilong-qa4": read_relation,
    "babilong-qa5": read_gift,
}


@pytest.mark.parametrize("name", TASKS)
def test_the_text_has_the_answer(name):
    """Read in order it gives the answer, and so do the facts up to the last one that is said to be needed."""
    stories = [TASKS[name](Random(seed)) for seed in range(300)]
    for story in stories:
        assert READERS[name](story) == story.answer, story
        assert not story.labels or story.answer in story.labels
        if name in ("babilong-qa1", "babilong-qa2", "babilong-qa3", "babilong-qa5"):
            assert READERS[name](replace(story, facts=story.facts[: story.told + 1])) == story.answer
    answers = {story.answer for story in stories}
    assert answers >= set(stories[0].labels)


@pytest.mark.parametrize(
    ("found", "answer", "exact", "score"),
    [
        ("The garden.", "garden", 1, 1),
        ("a GARDEN!", "the garden", 1, 1),
        ("in the garden", "garden", 0, 2 / 3),
        ("garden garden", "garden", 0, 2 / 3),
        ("", "garden", 0, 0),
        ("kitchen", "garden", 0, 0),
        ("the big red house", "big house", 0, 0.8),
        ("big house", "the big red house", 0, 0.8),
        ("Sir Walter Elliot, of Kellynch Hall", "sir walter elliot of kellynch hall", 1, 1),
        ("an apple and a pear", "pear and apple", 0, 1),
    ],
)
def test_exact_match_and_f1(found, answer, exact, score):
    assert exact_match(found, answer) == exact and f1(found, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ("garden", 1),
        ("Mary is in the garden.", 1),
        ("the Garden. Then the kitchen", 1),
        ("garden or kitchen", 0),
        ("kitchen", 0),
        ("", 0),
        ("She left the office for the garden", 1),
        ("the office", 0),
        ("garden Question: Where is John? Answer: kitchen", 1),
        ("the garden, not the hallway", 0),
    ],
)
def test_babilongs_score(found, right):
    """The question names the office, which may be repeated."""
    labels = ("garden", "kitchen", "office", "hallway")
    assert names_only(found, "garden", "Where was Mary after the office?", labels) == right


def test_wilsons_interval():
    """Of 0 and 10 among 10, and of 3 among 50."""
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-3)
    assert wilson(3, 50) == pytest.approx((0.0206, 0.1622), abs=1e-3)


def test_documents(folders):
    """As long as asked, with all facts in order at their places; by seed, and of another novel for training."""
    tokenizer = load_tokenizer(str(folders / "hf"))
    test, train = Haystack(tokenizer, "test"), Haystack(tokenizer, "train")
    for name in TASKS:
        for length in (700, 1500):
            task = test.task(name, length, 3)
            ends = [0]
            for fact in task.story.facts:
                ends.append(task.text.index(fact, ends[-1]) + len(fact))
            at = ends[task.story.told + 1] - len(task.story.facts[task.story.told])
            assert task.place == pytest.approx(at / len(task.text))
            size = len(tokenizer(task.text).input_ids)
            assert length - 150 < size <= length + 10
            assert test.task(name, length, 3) == task != test.task(name, length, 4)
    assert len(set(train.sentences) & set(test.sentences)) < 20  # "Oh, certainly!"
    assert not any(sentence.endswith(("Mr.", "Mrs.")) for sentence in test.sentences)
    places = [test.task("passkey", 1000, seed).place for seed in range(60)]
    assert min(places) < 0.15 and max(places) > 0.85


@torch.no_grad()
def test_readings(folders):
    """Memory is what generation does; with equal ends, another's memories give the other's answer; none differ."""
    asked = load_model(folders / "hf", ChatOptions())
    asked.model.hmt.memory_embedding.scale *= 8  # or a random model does not care
    readings = Readings(asked, ("memory", "swapped", "empty"), 16)
    end = document(2 * L).tolist()
    documents = [[*document(2).tolist(), *end], [*document(2).tolist(), *end]]
    questions = [[7, 9, 11]] * 2
    cache = readings.read(documents)
    found = {name: readings.ask(cache, change, questions) for name, change in CHANGES.items()}
    ids = torch.tensor([[*one, *question] for one, question in zip(documents, questions, strict=True)])
    options = {"attention_mask": torch.ones_like(ids), "generation_config": readings.settings}
    new = asked.model.generate(ids, **options)[:, ids.shape[1] :]
    assert found["memory"] == readings.texts(new)
    assert found["swapped"] == found["memory"][::-1] and found["memory"][0] != found["memory"][1]
    assert found["empty"][0] == found["empty"][1] not in found["memory"]


@pytest.fixture
def run(folders, monkeypatch, capsys):
    """Run a command in the folder of the materials; returns its exit code, and what it printed."""
    monkeypatch.chdir(folders)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def command(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["hmt-ds", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return command


def test_the_command(run, tmp_path):
    """A row for each task and length, every answer in the JSON, and a picture."""
    words = ["--tasks", "passkey,babilong-qa1..2", "--lengths", "100,200", "--samples", "5", "--batch", "2"]
    files = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    code, out, _ = run("evaluate", "hf", *words, *files, "--readings", "memory,swapped,empty,truncated,full")
    assert code == 0 and all(out.count(name) == 2 for name in ("passkey", "babilong-qa1", "babilong-qa2"))
    answers = json.loads((tmp_path / "a.json").read_text())["answers"]
    assert len(answers) == 3 * 2 * 5 * 5 and {answer["length"] for answer in answers} == {100, 200}
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert run("evaluate", "hf", *words, "--json", str(tmp_path / "b.json"))[0] == 0
    again = json.loads((tmp_path / "b.json").read_text())["answers"]
    assert [a for a in answers if a["reading"] == "memory"] == [a for a in again if a["reading"] == "memory"]


def test_documents_to_train_on(run, tmp_path):
    file = tmp_path / "train.jsonl"
    words = ["--tokenizer", "hf", "--lengths", "100,200", "--documents", "4", "--output", str(file)]
    code, out, _ = run("tasks", "babilong-qa1", "passkey", *words)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert code == 0 and "8 in" in out and [row["task"] for row in rows] == ["babilong-qa1", "passkey"] * 4
    assert all(re.search(r" Question: .*\? Answer: \w+\.$", row["text"]) for row in rows)
    assert len({row["text"] for row in rows}) == 8


def test_both_formats_of_training_data_are_the_prompt_of_evaluations(folders):
    """As `questions` the answer alone is learnt; the text before it is what evaluations read."""
    task = Haystack(load_tokenizer(str(folders / "hf")), "train").task("babilong-qa1", 100, -1)
    row = row_of(task)
    (part,) = PARTS["questions"](row)
    ((begin, end),) = part.answers
    assert part.text[:begin] == task.text + task.question and part.text[begin:end] == f" {task.story.answer}"
    assert row["text"] == f"{part.text}." and end == len(part.text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "hf", "--tasks", "qasper"], ["--tasks: ", "qasper"]),
        (["evaluate", "hf", "--tasks", "passkey", "--samples", "1"], ["--samples: must be at least 2"]),
        (["evaluate", "hf", "--tasks", "passkey", "--lengths", "4k"], ["--lengths: "]),
        (["evaluate", "hf", "--tasks", "passkey", "--memory.mode", "rmt"], ["--memory.mode: not with --tasks"]),
        (["evaluate", "hf", "--tasks", "passkey", "--picture", "a.doc"], ["--picture: must end in .png"]),
        (["evaluate", "hf", "--tasks", "passkey", "--json", "no/a.json"], ["--json: no/a.json cannot be written"]),
        (["evaluate", "hf", "--lengths", "100"], ["--lengths: only with --tasks", "hf is a converted folder"]),
        (
            ["evaluate", "gpt2", "--tasks", "passkey", "--readings", "full"],
            ["4096 + 16 tokens exceed the backbone's 32 positions"],
        ),
        (["tasks", "passkey"], ["--output: missing", "--tokenizer: missing"]),
        (["tasks", "passkey", "--output", "a.txt", "--tokenizer", "hf"], ["does not end in .jsonl"]),
    ],
    ids=lambda value: "_".join(value[2:]).replace("/", ".")[:40],
)
def test_wrong_input(run, words, said):
    code, out, err = run(*words)
    assert code == 2 and out == "" and all(line in err for line in said), err
    assert len(errors_in(err)) <= 2
