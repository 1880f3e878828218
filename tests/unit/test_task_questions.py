"""`hmt-ds evaluate --questions`: the file, its scores, and wrong lines."""

import json
import sys
from pathlib import Path

import pytest
from test_generate_command import write_tokenizer
from tiny import GPT2, LLAMA
from tiny_folder import write_tiny

from hmt_ds import cli
from hmt_ds.tasks.evaluate_questions import read_questions
from hmt_ds.tasks.scores import exact_match, f1, rouge_l


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Converted folders with tokenizers."""
    root = tmp_path_factory.mktemp("questions")
    write_tokenizer(write_tiny(root / "hf", LLAMA | {"vocab_size": 400, "eos_token_id": 1}, interface="adapted"))
    write_tokenizer(write_tiny(root / "gpt2", GPT2 | {"vocab_size": 400, "eos_token_id": 1}, interface="adapted"))
    return root


@pytest.mark.parametrize(
    ("found", "answer", "expected"),
    [  # as the package rouge_score has them, without stemming
        ("the cat sat on the mat", "the cat is on the mat", 5 / 6),
        ("a b c d e", "e d c b a", 0.2),
        ("", "x", 0),
        ("The Garden.", "the garden", 1),
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("x y z", "x y z x y z", 2 / 3),
        ("it's 3.5 km", "its 35 km", 0.25),
        ("one two three four five six", "two four six", 2 / 3),
        ("Sir Walter Elliot, of Kellynch Hall", "of Kellynch Hall, Sir Walter Elliot", 0.5),
    ],
)
def test_rouge_l(found, answer, expected):
    assert rouge_l(found, answer) == pytest.approx(expected)


@pytest.fixture
def run(folders, monkeypatch, capsys):
    """Run `hmt-ds evaluate` in the folder of the materials; returns its exit code, and what it printed."""
    monkeypatch.chdir(folders)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def command(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["hmt-ds", "evaluate", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return command


def write(folder: Path, *rows: object) -> str:
    """Write a file of questions; return its path."""
    file = folder / "questions.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(file)


def test_questions_of_a_file(run, tmp_path):
    """The best of several answers counts, and the means are those of all answers."""
    rows = [
        {"context": f"Anne was at home. {n} went to Bath. " * 9, "input": "Who?", "answers": ["Anne", f"{n} in Bath"]}
        for n in range(5)
    ]
    file, out = write(tmp_path, *rows, "", {"context": "Anne was at home.", "answers": "home"}), tmp_path / "a.json"
    code, printed, _ = run("hf", "--questions", file, "--json", str(out), "--batch", "2", "--answer-tokens", "20")
    answers = json.loads(out.read_text())["answers"]
    assert code == 0 and len(answers) == 6 * 3 and {one["line"] for one in answers} == {1, 2, 3, 4, 5, 6}
    for one in answers:
        best = {name: max(score(one["found"], a) for a in one["answers"]) for name, score in (("F1", f1),)}
        assert one["scores"]["F1"] == best["F1"] and set(one["scores"]) == {"exact match", "F1", "ROUGE-L"}
        assert one["scores"]["exact match"] == max(exact_match(one["found"], a) for a in one["answers"])
    own = [one["scores"]["ROUGE-L"] for one in answers if one["reading"] == "memory"]
    assert f"{100 * sum(own) / 6:.1f} [" in printed and printed.count(" 6 ") == 3


def test_several_questions_on_a_document(tmp_path):
    """Each is asked behind the document alone, in the words that format questions trains on."""
    rows = {"context": "Anne was at home.", "input": ["Who?", ""], "answers": [["Anne", "She"], "home"]}
    assert list(read_questions(Path(write(tmp_path, rows)))) == [
        ("Anne was at home.", " Question: Who? Answer:", ["Anne", "She"]),
        ("Anne was at home.", " Answer:", ["home"]),
    ]


GOOD = {"context": "Anne was at home.", "answers": ["home"]}


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([GOOD], [], "has 1 questions, but at least 2 are needed"),
        ([GOOD, "{"], [], "line 2 is not a JSON object"),
        ([GOOD, "3"], [], "line 2 is not a JSON object"),
        ([GOOD, {"context": "a"}], [], "line 2 has no key 'answers'"),
        ([GOOD, {"context": "a", "answers": []}], [], "line 2: context and input must be texts, answers a text or"),
        (
            [GOOD, {"context": "a", "input": ["b", "c"], "answers": ["a"]}],
            [],
            "line 2: context and input must be texts",
        ),
        ([GOOD, {"context": " ", "answers": ["a"]}], [], "line 2: context and input must be texts, answers a text or"),
        ([GOOD, GOOD], ["--tasks", "passkey"], "questions.jsonl cannot be used together with --tasks"),
        ([GOOD, GOOD], ["--memory.mode", "rmt"], "--memory.mode: not with --tasks or --questions"),
    ],
)
def test_wrong_files(run, tmp_path, rows, words, said):
    code, out, err = run("hf", "--questions", write(tmp_path, *rows), *words)
    assert code == 2 and out == "" and said in err and err.count("error: ") == 1


def test_too_long_for_the_backbone(run, tmp_path):
    file = write(tmp_path, GOOD, {"context": "Anne was at home. " * 20, "answers": ["home"]})
    code, _, err = run("gpt2", "--questions", file, "--readings", "memory,full")
    assert code == 2 and "tokens exceed the backbone's 32 positions" in err
    code, _, err = run("hf", "--questions", str(tmp_path / "none.jsonl"))
    assert code == 2 and "none.jsonl is not a file" in err
