"""A tokenizer learns the texts of any source: no syntax of files, and all lines."""

import gzip
import json
from pathlib import Path

import datasets
import pytest
import yaml
from bad_folder import errors_in, make_folder

import hmt_ds.data
from hmt_ds import cli
from hmt_ds.data import DataError, train_on_lines, train_sentencepiece
from hmt_ds.data.train_tokenizer import LETTERS, LONGEST, short_lines

NOVEL = Path(hmt_ds.data.__file__).parent / "samples" / "prideprejudice.txt"
PAGES = NOVEL.read_text(encoding="utf-8")[:60_000].split("\n\n")
SIZE = 400


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def model(folder: Path) -> bytes:
    return (folder / "tokenizer.model").read_bytes()


def lines() -> list[str]:
    return [line for page in PAGES for line in page.split("\n")]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    """What the lines of the texts alone give."""
    return model(train_on_lines(lines(), tmp_path_factory.mktemp("expected") / "new", SIZE, "lines"))


def test_of_a_jsonl_file_the_texts_are_learnt(tmp_path, expected):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": 7, "body": page}) + "\n" for page in PAGES))
    new = train_sentencepiece([tmp_path / "a.jsonl"], tmp_path / "new", SIZE, text_field="body")
    assert model(new) == expected
    with pytest.raises(DataError, match="has no column 'text'; it has: id, body"):
        train_sentencepiece([tmp_path / "a.jsonl"], tmp_path / "other", SIZE)


@pytest.mark.parametrize("kind", ["text", "log", "folder", "compressed", "pattern"])
def test_other_sources_give_the_same(tmp_path, expected, kind):
    text = "\n".join(lines())
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / {"log": "a.log", "compressed": "a.txt.gz"}.get(kind, "a.txt")
    file.write_bytes(gzip.compress(text.encode()) if kind == "compressed" else text.encode())
    source = {"folder": tmp_path / "data", "pattern": tmp_path / "data" / "*.txt"}.get(kind, file)
    assert model(train_sentencepiece([source], tmp_path / "new", SIZE)) == expected


def test_long_lines_are_read_in_parts(tmp_path):
    words = "ab cd é " * (LETTERS // 4) + "x" * (2 * LETTERS) + " end"
    parts = list(short_lines(["short", words, ""]))
    assert parts[0] == "short" and parts[-1] == "" and "".join(parts[1:-1]) == words
    assert all(len(part.encode()) <= LONGEST for part in parts)
    assert parts[1].endswith(" ")
    # one line of over 1 MiB has letters that are nowhere else
    (tmp_path / "a.txt").write_text("\n".join([*lines(), "ŵĝ " * LETTERS]))
    new = hmt_ds.data.load_tokenizer(str(train_sentencepiece([tmp_path / "a.txt"], tmp_path / "new", SIZE)))
    assert len(new("ŵĝ").input_ids) <= 4  # BOS and few pieces, where bytes would be four more


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["hmt-ds", "tokenizer", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_recipe_with_sources_of_several_formats(tmp_path, monkeypatch, capsys, expected):
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    half = len(PAGES) // 2
    chats = [{"messages": [{"role": "user", "content": page}]} for page in PAGES[:half]]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in PAGES[half:]))
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["data"]["train"] = [{"source": "chats.jsonl", "format": "messages"}, {"source": "pages.jsonl"}]
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(recipe))
    code, out, _ = run(monkeypatch, capsys, "mixed.yaml", "--vocab-size", str(SIZE), "--output", "new")
    assert code == 0 and out.startswith("tokenizer   new")
    users = ["user" for _ in chats]  # the roles are texts too
    every = [text for page in zip(users, PAGES[:half], strict=True) for text in page] + PAGES[half:]
    split = [line for text in every for line in text.removesuffix("\n").split("\n")]
    roles = train_on_lines(split, tmp_path / "roles", SIZE, "lines")
    assert sorted(hmt_ds.data.load_tokenizer("new").get_vocab()) == sorted(
        hmt_ds.data.load_tokenizer(str(roles)).get_vocab()
    )


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words, line in (
        (["no.txt"], "error: 'no.txt' is neither a file nor a folder: check the path"),
        (["no.yaml"], "error: no.yaml: no such recipe"),
        (["binary.txt"], "error: cannot read binary.txt as UTF-8 text: 'utf-8' codec can't decode byte 0x80"),
    ):
        code, _, err = run(monkeypatch, capsys, *words, "--vocab-size", "300", "--output", "new")
        (said,) = errors_in(err)
        assert code == 2 and said.startswith(line)
        assert not (tmp_path / "new").exists()
    (tmp_path / "text.txt").write_text("It says: yes, yes. Where is it?\n" * 20)
    code, _, err = run(monkeypatch, capsys, "text.txt", "--vocab-size", "280", "--output", "/proc/new")
    assert code == 2 and "error: the tokenizer cannot be written to" in err
