"""`hmt-ds preview`: what is shown is what the model reads, in the terminal and as a page in a browser."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from chat_templates import byte_level
from datasets import Dataset, Features, List, Value
from rich.console import Console

from hmt_ds import cli
from hmt_ds.data import Packing, WindowLoader
from hmt_ds.memory import MemorySettings
from hmt_ds.preview.documents import Document, Part, Place, first_documents
from hmt_ds.preview.page import render
from hmt_ds.preview.terminal import print_preview
from hmt_ds.preview.view import Bar, Shown, histogram, padding, show

CHROMIUM = shutil.which("chromium")
ROOT = Path(__file__).parents[2]
L = 8
SETTINGS = MemorySettings(segment_length=L, sensory_tokens=3, memory_tokens=2, interface="adapted")
TEXT = "The heavy jar [bold]is[/bold] in <b>Denver</b>. Question: Where is the jar? Answer: in \u00e9l D\u00e9nver."


def loader(weights: bool = True, packing: Packing | None = None) -> tuple[Dataset, WindowLoader]:
    """Twelve documents of random tokens and weights, and their windows in the order of training."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, 12)
    columns = {"input_ids": [random.integers(1, 300, n) for n in lengths], "length": lengths}
    features = {"input_ids": List(Value("int32")), "length": Value("int64")}
    if weights:
        columns["weights"] = [random.choice([0, 0.5, 1], n) for n in lengths]
        features["weights"] = List(Value("float32"))
    tokens = Dataset.from_dict(columns, features=Features(features))
    options = {"segments": 3, "segment_length": L, "seed": 5, "rank": 0, "world_size": 1, "batch_size": 2}
    return tokens, WindowLoader(tokens, packing=packing, **options)


def document_of(text: str, answer: str, length: int = L) -> Document:
    """A document of one text, of which the first part weighs 0.1 and the answer 1."""
    tokenizer = byte_level()
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, at = torch.tensor(encoded.input_ids), text.index(answer)
    weights = torch.tensor([1 if end > at else 0.1 for _, end in encoded.offset_mapping])
    labels = torch.cat([weights[1:], torch.zeros(1)])
    place = Place(7, False, slice(None), shared=False, last=True)
    both = zip(ids.split(length), labels.split(length), strict=True)
    return Document(7, [Part(*pair, place) for pair in both], done=True)


@pytest.mark.parametrize("weights", [True, False])
def test_documents_are_those_of_the_data(weights):
    """Whole, in the order of the windows, each token with its own weight; the first has none, nothing predicts it."""
    tokens, batches = loader(weights)
    found = first_documents(batches, 5, 0)
    begun = [
        int(batch.documents[row, n])
        for batch in itertools.islice(batches, 8)
        for n, row in itertools.product(range(3), range(2))
        if batch.starts[row, n]
    ]
    assert [document.number for document in found] == begun[:5]
    for document in found:
        row = tokens[document.number]
        assert (
            torch.cat([part.ids for part in document.parts]).tolist() == row["input_ids"]
            and document.tokens == row["length"]
        )
        assert all(len(part.ids) == L for part in document.parts[:-1])
        shown = torch.cat([document.weights(n) for n in range(len(document.parts))]).tolist()
        assert shown == [0, *(row["weights"][1:] if weights else [1] * (row["length"] - 1))]


def test_documents_that_share_segments():
    """They are whole without the gaps between them, and only the last one of a segment keeps its memory."""
    tokens, batches = loader(packing=Packing(gap=2, least=2))
    found = first_documents(batches, 8, gap=2)
    assert any(part.place.shared for document in found for part in document.parts)
    for document in found:
        row, parts = tokens[document.number], document.parts
        assert torch.cat([part.ids for part in parts]).tolist() == row["input_ids"]
        weights = torch.cat([document.weights(n) for n in range(len(parts))]).tolist()
        assert weights == [0, *row["weights"][1:]]
        assert all(part.place.last for part in parts[:-1])  # one that goes on
        assert [one.behind for one in show(document, "", SETTINGS, byte_level(), 99).readings] == [
            ["write 2"] if part.place.last else [] for part in parts
        ]
    assert not all(document.parts[-1].place.last for document in found)


def test_a_segment_as_it_is_read():
    """Its texts make up the document's, characters of several tokens included; sensory tokens are the last ones."""
    document, tokenizer = document_of(TEXT, " in \u00e9l"), byte_level()
    shown = show(document, "Document 7 of a.jsonl", SETTINGS, tokenizer, 100)
    assert shown.segments == len(shown.readings) == len(document.parts)
    assert "".join(run.text for one in shown.readings for run in one.runs) == TEXT
    answers = [run.text for one in shown.readings for run in one.runs if run.weight == 1]
    assert "".join(answers) == " in \u00e9l D\u00e9nver."
    first, second, *_ = shown.readings
    assert first.before == ["sink", "initial memory 4"] and second.before == ["sink", "memory 4"]
    assert first.sensory == "" and second.sensory == tokenizer.decode(document.parts[0].ids[-3:])
    assert (second.first, second.tokens, second.behind) == (L, L, ["write 2"])
    assert sum(one.in_loss for one in shown.readings) == shown.in_loss == document.tokens - 1
    assert len(shown.weights) == 3 and {0, 1} < shown.weights  # the first token, the prompt, the answer


def test_the_first_and_the_last_segments():
    document = document_of(TEXT * 3, " in \u00e9l")
    for most, numbers in (1, [1, None]), (2, [1, None, -1]), (5, [1, 2, 3, None, -2, -1]):
        shown = show(document, "Document 7 of a.jsonl", SETTINGS, byte_level(), most)
        count = shown.segments
        expected = [number if number is None or number > 0 else count + 1 + number for number in numbers]
        assert [one and one.number for one in shown.readings] == expected


def test_histogram_and_padding():
    lengths = [1, L, L + 1, 3 * L, 4 * L, 4 * L, 30 * L]
    assert histogram(lengths, L) == [
        Bar("1", 2, 2 / 3),
        Bar("2", 1, 1 / 3),
        Bar("3 to 4", 3, 1),
        Bar("5 to 8", 0, 0),
        Bar("9 to 16", 0, 0),
        Bar("17 to 32", 1, 1 / 3),
    ]
    assert padding([1, L, L + 1], L) == pytest.approx(1 - (2 * L + 2) / (4 * L))


def printed(shown: Shown, **options: object) -> str:
    console = Console(file=StringIO(), width=100, **options)
    print_preview(console, "Summary.", histogram([L, 5 * L], L), [shown])
    return console.file.getvalue()


def test_the_terminal_shows_weights_without_colours_too():
    """Markup within documents is text, and brackets say what is in the loss."""
    shown = show(document_of(TEXT, " in \u00e9l", 40), "Document 7 of a.jsonl", SETTINGS, byte_level(), 100)
    plain = printed(shown)
    assert "[bold]is[/bold] in <b>Denver</b>" in plain and "\u001b" not in plain
    assert "\u27e7 x0.1\u27e6 in \u00e9l" in plain
    assert f"Document 7 of a.jsonl: {shown.tokens} tokens in {shown.segments} segments, " in plain
    coloured = printed(shown, color_system="standard", force_terminal=True)
    assert "\u001b[32m in \u00e9l" in coloured and "\u27e6" not in coloured


def page(documents: int = 2) -> str:
    shown = show(document_of(TEXT * 4, " in \u00e9l"), "Document 7 of a.jsonl", SETTINGS, byte_level(), 6)
    return render("What recipe.yaml reads", "Summary.", histogram([L, 5 * L, 900 * L], L), [shown] * documents)


def test_the_page_needs_no_other_file():
    """Documents cannot put anything into the page but text."""
    text = page()
    assert "<b>" not in text and "&lt;b&gt;" in text
    assert not re.search(r"https?:|src=|<link|@import|url\(", text)
    assert text.count("<section>") == 2 and text.count('class="segment"') == 12


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_all_of_it(tmp_path, width):
    """Nothing is wider than the window, and the page's text is the documents'. (Windows are at least 500 wide.)"""
    file = tmp_path / "preview.html"
    script = """<script>
    const root = document.documentElement, texts = [...document.querySelectorAll(".text")];
    const bars = [...document.querySelectorAll(".bar div")].map(one => Math.round(one.getBoundingClientRect().width));
    root.dataset.seen = [root.scrollWidth, innerWidth, Math.min(...texts.map(one => one.clientHeight)), ...bars];
    root.dataset.text = encodeURIComponent(texts[0].innerText);
    </script>"""
    file.write_text(page().replace("</body>", f"{script}</body>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    ran = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    wide, window, lowest, *bars = map(int, re.search(r'data-seen="([\d,]+)"', ran.stdout)[1].split(","))
    assert wide <= window and lowest > 15 and max(bars) > 100 and len(bars) == 11
    assert "The%20heavy" in re.search(r'data-text="([^"]+)"', ran.stdout)[1]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A recipe of questions, whose model is nowhere."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    rows = [{"context": f"The jar is in Denver. {n}", "input": "Where is it?", "answers": ["Denver"]} for n in range(9)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"source": "no/model", "tokenizer": str(ROOT / "hmt_ds/data/samples/words")},
        "memory": {"segment_length": 16, "sensory_tokens": 4, "memory_tokens": 2},
        "data": {"train": {"source": "rows.jsonl", "format": "questions"}},
        "training": {"output": "run", "steps": 3},
        "optimizer": {"lr": 0.1},
        "deepspeed": "zero1.json",
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "preview", "recipe.yaml", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def test_the_command(folder, monkeypatch, capsys):
    """It needs no model, writes nothing but the page, and takes keys of the recipe."""
    assert run(monkeypatch, "--documents", "2", "--pipeline.stages", "2") == 0
    text = capsys.readouterr().out
    assert "9 documents, " in text and "padding" in text and text.count("\nDocument ") == 2
    assert "\u27e6 Denver\u27e7" in text or "\u27e6Denver\u27e7" in text
    assert run(monkeypatch, "--html", "page.html", "--data.train.prompt_weight", "0.25", "--documents", "99") == 0
    assert "page        page.html" in capsys.readouterr().out
    assert Path("page.html").read_text().count("<section>") == 9 and "weight 0.25" in Path("page.html").read_text()
    assert not Path("run").exists()
    generated = ["--data.train", "null", "--data.retrieval.kind", "keys", "--memory.segment_length", "18"]
    assert run(monkeypatch, *generated) == 0
    assert "Generated documents" in capsys.readouterr().out


def test_several_sources(folder, monkeypatch, capsys):
    """Documents are named by their sources; plain text beside answers is in the loss as a whole."""
    Path("plain.txt").write_text("The jar is in Denver. The blanket is in Glasgow.")
    sources = "[{source: rows.jsonl, format: questions}, {source: plain.txt, weight: 3}]"
    assert run(monkeypatch, "--data.train", sources, "--documents", "8") == 0
    heads = re.findall(r"Document (\d+) of (\S+): (\d+) tokens in \d+ segments?, (\d+) in", capsys.readouterr().out)
    assert {source for _, source, *_ in heads} == {"rows.jsonl", "plain.txt"} and len(heads) == 8
    for number, source, tokens, in_loss in heads:
        assert (int(number) == 0 and int(in_loss) == int(tokens) - 1) if source == "plain.txt" else int(in_loss) == 1
    assert sum(source == "plain.txt" for _, source, *_ in heads) == 6  # three quarters of what is read


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--html", "page.txt"], "--html: must end in .html, got 'page.txt'"),
        (["--documents", "0"], "--documents: must be at least 1, got '0'"),
        (["--html", "rows.jsonl/page.html"], "--html: rows.jsonl/page.html cannot be written: "),
        (
            ["--data.train.format", "messages"],
            "data.train: rows.jsonl has no column 'messages'; it has: context, input",
        ),
        (["--data.train", "null"], "data.train: missing (or data.retrieval, to generate documents)"),
        (["--model.tokenizer", "nowhere.model"], "model.tokenizer: tokenizer 'nowhere.model': there is no such file"),
    ],
)
def test_a_mistake_is_a_line(folder, monkeypatch, capsys, words, line):
    assert run(monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert line in said.out + said.err and "Traceback" not in said.err
