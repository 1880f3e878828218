"""`hmt-ds report`: what the page says, that it needs no other file, and that a phone can show it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hmt_ds import cli
from hmt_ds.overview.evaluation_sections import with_interval
from hmt_ds.overview.figures import COLOURS, POINTS, Curve, curves, running_mean, thinned
from hmt_ds.overview.page import Folded, Section, Table, render
from hmt_ds.overview.planned import planned_table
from hmt_ds.overview.report import write_report
from hmt_ds.overview.run_folder import RunFolder
from hmt_ds.overview.sections import flattened
from hmt_ds.reporting.history import History

np = pytest.importorskip("numpy")
CHROMIUM = shutil.which("chromium")
RECIPE = "model: {{source: '<b>bold</b> & co'}}\ntraining: {{steps: 60, output: {output}}}\noptimizer: {{lr: {lr}}}\n"
START = {"ranks": 2, "devices": ["CPU"], "machines": {"node1": 2}, "python": "3.11", "packages": {"torch": "2.9"}}


def make_run(folder: Path, lr: float = 0.1, name: str = "one") -> Path:
    """Write the folder of a run of 60 steps, resumed once, with both kinds of evaluations."""
    run = folder / name
    (run / "evaluation").mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE.format(output=run, lr=lr))
    rows = [
        {
            "step": n,
            "loss": 5 - n / 20 if n != 7 else None,
            "gradient_norm": 1.0 + n % 5,
            "learning_rate": lr,
            "seconds": 2.0,
            "tokens_per_second": 1000.0,
            "peak_memory_gib": 1.5,
            "recall_distance": 1.0,
            "skipped": 1,
        }
        for n in range(1, 61)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = History(run)
    history.write("start", 0, environment=START)
    for step in (20, 40):
        history.write("ranks", step, seconds=[1.0, 1.0 + step / 20])
    for step in (25, 50):
        history.write("probe", step, cost=0.1, error=0.01)
    history.write("warning", 30, text="loss spike: 9.1 <script>alert(1)</script>")
    history.write("start", 30, environment=START | {"packages": {"torch": "2.10"}})
    history.write("end", 60)
    row = {"below": 2, "tokens": 10, "perplexity": 20.0, "nats": [2.9957, 2.9, 3.1]}
    row |= {"cost_swapped": [0.5, 0.4, 0.6], "cost_none": [0.7, 0.6, 0.8]}
    rows = [row | {"segments_read": 1}, row | {"segments_read": 2, "below": 4, "nats": [2.5, None, None]}]
    losses = {"step": 60, "data": {"sha256": name}, "verdict": "the memory is used", "rows": rows, "remembered": row}
    (run / "evaluation" / "step_000060.json").write_text(json.dumps(losses))
    answered = {"segments": 8, "right": [0.9, 0.8, 1.0], "found": [0.5, 0.4, 0.6]}
    answers = {"step": 60, "chance": 0.04, "rows": [answered, answered | {"segments": 80, "found": None}]}
    (run / "evaluation" / "retrieval_step_000060.json").write_text(json.dumps(answers))
    (run / "evaluation" / "retrieval_step_000060.png").write_bytes(b"\x89PNG")
    return run


def text_of(page: str) -> str:
    """Return the text of a page without its elements, in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2]).split())


def test_what_a_page_says(tmp_path):
    page = write_report([make_run(tmp_path)], None).read_text()
    text = text_of(page)
    for said in (
        "state finished",
        "steps 60 of 60",
        "training loss 4.950 to 2.225",
        "held-out perplexity 20.00 (2.996 nats [2.900, 3.100])",
        "verdict the memory is used",
        "questions right 90.0% [80.0%, 100.0%] in documents of 80 segments",
        "time of its steps 02:00",
        "speed 1,000 tokens/s per rank",
        "peak memory 1.50 GiB on rank 0",
        "restarts 1",
        "skipped steps 1",
        "warnings 1",
        "1 2.996 [2.900, 3.100] 2 to 3 2.500",
        "resumed, 2 ranks, CPU",
        "torch 2.10",
        "node1 (2)",
    ):
        assert said in text, said
    assert (
        page.count("<svg") == 5 + 1 + 3 + 2 + 1
    )  # metrics, probes, held-out losses, answers, ranks; recall is constant
    assert 'src="data:image/png;base64,iVBORw=="' in page


def test_a_page_needs_no_other_file_and_runs_nothing(tmp_path):
    page = write_report([make_run(tmp_path)], None).read_text()
    assert not re.findall(r"https?:|<script|<link|@import|url\((?!#)", page)
    assert set(re.findall(r'(?:src|href)="([^"]{0,5})', page)) <= {"data:"} | {
        found for found in re.findall(r'href="([^"]{0,5})', page) if found.startswith("#")
    }
    assert "&lt;script&gt;alert(1)" in page and "&lt;b&gt;bold&lt;/b&gt; &amp; co" in page
    assert len(re.findall(r'<g id="', page)) == 0  # pictures of a page would have the same ones


def test_runs_side_by_side(tmp_path):
    runs = [make_run(tmp_path, 0.1, "one"), make_run(tmp_path, 0.2, "two"), make_run(tmp_path / "more", 0.1, "one")]
    page = write_report(runs[:2], tmp_path / "new" / "page.html").read_text()
    text = text_of(page)
    assert "2 runs: one, two" in text and "state finished finished" in text
    assert f"training.output {runs[0]} {runs[1]} optimizer.lr 0.1 0.2" in text  # and no key that is the same
    assert "The runs were evaluated on different documents" in text
    assert page.count("<svg") == 5 + 1 + 3 + 2 + 2 and page.count('<img src="data:') == 2
    page = write_report([runs[0], runs[2]], tmp_path / "page.html").read_text()
    assert f"2 runs: {runs[0]}, {runs[2]}" in text_of(page)


def test_runs_with_less(tmp_path):
    """A run that has just begun, and one whose files are damaged."""
    (tmp_path / "recipe.yaml").write_text("training: {steps: 60}\n")
    text = text_of(write_report([tmp_path], None).read_text())
    assert "state not started" in text and "Training" not in text and "Environment" not in text
    run = make_run(tmp_path)
    for file in (run / "evaluation").glob("*.json"):
        file.write_text('{"rows": [')
    text = text_of(write_report([run], None).read_text())
    assert "Held-out" not in text and "Questions" not in text and "training loss" in text


def test_errors(monkeypatch, capsys, tmp_path):
    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hmt-ds", "report", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    run = make_run(tmp_path)
    code, _, err = command(str(tmp_path / "a"), str(run), str(tmp_path))
    assert code == 2 and err.splitlines() == [
        f"error: {tmp_path / 'a'}: no such run: name the folder of a run (training.output)",
        f"error: {tmp_path}: not a run, it has no recipe.yaml: name the folder of a run (training.output)",
    ]
    assert command(str(run), "--output", "a.pdf") == (2, "", "error: --output: must end in .html, got 'a.pdf'\n")
    code, _, err = command(str(run), "--output", str(run / "recipe.yaml" / "a.html"))
    assert code == 2 and err.startswith(f"error: --output: {run / 'recipe.yaml' / 'a.html'} cannot be written: ")
    code, out, _ = command(str(run))
    assert code == 0 and out.splitlines()[0] == f"report      {run / 'report.html'}"


def test_the_plan_beside_a_run_on_gpus(tmp_path):
    project = Path(__file__).parents[2]
    run = make_run(tmp_path)
    shutil.copy(project / "launch" / "recipes" / "bench-1.1b.yaml", run / "recipe.yaml")
    assert planned_table(RunFolder(run)) is None  # on CPUs
    History(run).write("start", 60, environment=START | {"devices": ["NVIDIA H100 80GB HBM3"]})
    table = planned_table(RunFolder(run))
    assert table.head == ["one on 2 x H100 80 GB on 1 node", "planned", "measured"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["weights"] == ["2.06 GiB", ""] and rows["peak of a GPU"][1] == "1.50 GiB on rank 0"
    assert rows["tokens/s per GPU, longest windows"][1] == "1,000 (median of all)"
    History(run).write("start", 60, environment=START | {"devices": ["Some GPU"]})
    assert planned_table(RunFolder(run)) is None


def test_curves():
    y = np.array([1.0, np.nan, 3.0, 5.0])
    assert running_mean(y, 2).tolist() == [1, 1, 3, 4]
    x, thin = thinned(np.arange(5000), np.arange(5000) * 2)
    assert len(x) == POINTS and x[0] == 0 and x[-1] == 4999 and (thin == 2 * x).all()
    drawn = curves([Curve(0, "a", [1, 2], [1.0, None]), Curve(1, "b", [1, 2], [2.0, 3.0])], "step", "loss")
    assert drawn.startswith("<svg viewBox=") and ">step</text>" in drawn and ">b</text>" in drawn
    assert curves([Curve(0, "a", [1], [1.0])], "step", "loss") == curves([Curve(0, "a", [1], [1.0])], "step", "loss")


def test_a_run_has_the_same_colour_in_every_picture(tmp_path):
    """Also where a run before it has nothing to show."""
    runs = [make_run(tmp_path, 0.1, name) for name in ("one", "two")]
    (runs[0] / "evaluation" / "retrieval_step_000060.json").unlink()
    page = write_report(runs, None).read_text()
    answers = page.partition('<section id="questions-and-recall">')[2].partition("</section>")[0]
    assert COLOURS[1] in answers and COLOURS[0] not in answers
    metrics = page.partition('<section id="training">')[2].partition("</section>")[0]
    assert COLOURS[0] in metrics and COLOURS[1] in metrics


def test_small_parts():
    assert with_interval([1.0, 0.5, 1.5], "{:.1f}") == "1.0 [0.5, 1.5]"
    assert with_interval([1.0, None, None], "{:.1f}") == "1.0" and with_interval([None] * 3, "{:.1f}") == "-"
    assert dict(flattened({"a": {"b": 1, "c": {0: 2}}, "d": {}})) == {"a.b": 1, "a.c": {0: 2}, "d": {}}
    page = render("t", "w", [Section("A b"), Section("C d", tables=[Table(["x", "y"], [["r", "1"]])])])
    assert 'id="c-d"' in page and "A b" not in page
    assert "<pre>&lt;/pre&gt;</pre>" in render("t", "w", [Section("E", folded=[Folded("f", "</pre>")])])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_all_of_it(tmp_path, width):
    """Nothing is wider than the window, and pictures have a size. (Headless windows are at least 500 wide.)"""
    file = write_report([make_run(tmp_path, name="a_run_with_a_rather_long_name_" * 4), make_run(tmp_path)], None)
    script = """<script>
    const root = document.documentElement, pictures = [...document.querySelectorAll("svg[viewBox]")];
    root.dataset.seen = [root.scrollWidth, innerWidth, ...pictures.map(one => Math.round(one.clientHeight))];
    </script>"""
    file.write_text(file.read_text().replace("</body>", f"{script}</body>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    ran = subprocess.run(
        [CHROMIUM, *flags, profile, file.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    wide, window, *heights = map(int, re.search(r'data-seen="([\d,]+)"', ran.stdout)[1].split(","))
    assert wide <= window and len(heights) >= 10 and min(heights) > 100
