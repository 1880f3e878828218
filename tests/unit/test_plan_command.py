"""`hmt-ds plan`: what it draws, its facts, its table, its errors."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hmt_ds import cli
from hmt_ds.parallel.pipeline.schedule import UNIT, Costs, Item, Kind, pipeline_schedule
from hmt_ds.planning.simulate import Bar, Machine, simulate
from hmt_ds.reporting.pipeline_timeline import STYLES, timeline_lines
from hmt_ds.reporting.plots import plot_schedule

PROJECT = Path(__file__).resolve().parents[2]


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """The command in this process, without a terminal: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "plan", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, *capsys.readouterr()


def shaped(stages: int, segments: int, batches: int) -> list[str]:
    """Words of the command."""
    names = {"stages": stages, "segments": segments, "micro-batches": batches}
    return ["--schedule", *(word for name, number in names.items() for word in (f"--{name}", str(number)))]


def test_schedule(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, *shaped(2, 2, 2))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    # a column is a quarter: main passes have four, and so have summaries, of both micro-batches; backward twelve
    gradients = "B1.1--------B1.0--------B0.1--------B0.0--------t1.0"
    assert lines[1] == f"stage 0  s0.0s1.0F0.0F0.1F1.0F1.1{' ' * 16}{gradients[:-1]}"
    assert lines[2] == f"stage 1      s0.0s1.0F0.0F0.1F1.0F1.1{gradients}--------t0."
    assert lines[3:6] == ["time 22.75", "stage 0  0--------t0.0--------", "stage 1  0--------"]
    assert "\n".join(lines[-5:]) == (
        "time         28, where a main pass takes 1 forward, a summary 0.5, backward 3 times that\n"
        "summaries    those of 2 micro-batches are read together\n"
        "lower bound  28, which no schedule beats; met\n"
        "bubble       14.3% of a stage's time\n"
        "kept inputs  6 on a stage at its peak"
    )


def test_facts_of_stages_that_differ(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, *shaped(4, 2, 3))
    assert "lower bound  48, which no schedule beats; this is 8.3% above" in out
    _, out, _ = run(monkeypatch, capsys, *shaped(4, 2, 3), "--mode", "backbone")
    assert "kept inputs  1 to 4 on a stage at its peak" in out and "summary forward" not in out
    assert "bubble       33.3% of" in out


def test_long_ones_are_cut(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, *shaped(8, 16, 8))
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 100
    assert "cut off at 136.5 of 796; --picture FILE draws all of it" in lines
    assert sum(line.startswith("stage 7") for line in lines) == 6
    _, out, _ = run(monkeypatch, capsys, *shaped(60, 2, 2))
    assert sum(line.startswith("stage") for line in out.splitlines()) == 60  # one block is drawn of any


def drawn(costs: Costs = UNIT, width: int = 100, shape=(3, 2, 3)):
    """The bars of each stage, and their lines."""
    schedule = pipeline_schedule(*shape, costs=costs)
    stages = simulate(schedule, Machine.uniform(costs, shape[0])).stages
    return stages, list(timeline_lines(stages, width))


@pytest.mark.parametrize("width", [40, 100, 163])
def test_every_bar_is_drawn(width):
    """The blocks one behind the other hold each bar, at its place, in its style and not over another one."""
    stages, lines = drawn(Costs(recall=0.25), width, shape=(2, 1, 2))
    unit = 0.25 / 2
    for number, bars in enumerate(stages):
        own = [line for line in lines if line.plain.startswith(f"stage {number}")]
        columns = width - 9
        text = "".join(line.plain[9:].ljust(columns) for line in own)
        styles = {}
        for block, line in enumerate(own):
            for span in line.spans:
                for at in range(span.start, span.end):
                    styles[block * columns + at - 9] = span.style
        for bar in bars:
            start, stop = round(bar.start / unit), round(bar.stop / unit)
            assert re.fullmatch(re.escape(repr(bar.item)[: min(2, stop - start)]) + ".*-*", text[start:stop])
            assert {styles[at] for at in range(start, stop)} == {STYLES[bar.item.kind, bar.item.backward][0]}
        busy = sum(round((bar.stop - bar.start) / unit) for bar in bars)
        assert len(text.replace(" ", "")) == len(styles) == busy


def test_items_without_time_are_not_drawn():
    _, lines = drawn()
    assert not any("r0" in line.plain for line in lines) and "recall" not in lines[-1].plain
    bars = [
        [Bar(Item(Kind.MAIN, 11, 0), 0, 1), Bar(Item(Kind.MAIN, 12, 0), 1, 1), Bar(Item(Kind.SUMMARY, 11, 0), 1, 1.5)]
    ]
    assert [line.plain for line in timeline_lines(bars, 60)][1] == "stage 0  F11-s-"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(monkeypatch, capsys, tmp_path, suffix):
    file = tmp_path / f"schedule.{suffix}"
    code, out, _ = run(monkeypatch, capsys, "--schedule", "--stages", "2", "--picture", str(file))
    assert code == 0 and f"picture      {file}" in out
    assert file.read_bytes()[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[suffix]


def test_the_picture_has_every_bar(monkeypatch, tmp_path):
    """All items of all stages, at their times, in one colour for each kind."""
    import matplotlib.axes

    spans = []
    draw = matplotlib.axes.Axes.broken_barh

    def record(axes, xranges, yrange, **options):
        spans.extend((yrange[0] + 0.4, options["label"], *span) for span in xranges)
        return draw(axes, xranges, yrange, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "broken_barh", record)
    stages, _ = drawn()
    plot_schedule(stages, "title", tmp_path / "schedule.png")
    ways = {False: "forward", True: "backward"}
    expected = [
        (number, f"{bar.item.kind}, {ways[bar.item.backward]}", bar.start, bar.stop - bar.start)
        for number, bars in enumerate(stages)
        for bar in bars
        if bar.stop > bar.start
    ]
    assert sorted(spans) == sorted(expected)


def test_compare(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--compare", "--shape", "13b", "--gpus", "1,64", "--between-nodes", "100")
    assert code == 0 and "13b, 2 rows of 8 x 1024 tokens for each GPU; 600 TFLOP/s, 100 GB/s into a node" in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[:3] for row in rows[:3]] == [
        ["1", "ZeRO-1", "does not fit"],
        ["", "ring", "not possible"],
        ["", "ZeRO-3", "does not fit"],
    ]
    assert [row[0] for row in rows[3:]] == ["64", "", ""] and math.prod(map(int, rows[4][2].split(" stages x "))) == 64
    seconds, nanoseconds, speed = (float(cell.replace(",", "")) for cell in rows[4][3:6])
    assert speed == pytest.approx(2 * 8 * 1024 / seconds, rel=0.01)
    assert nanoseconds == pytest.approx(1e9 * seconds / (64 * 2 * 8 * 1024), rel=0.01)
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("--schedule --stages 0", ["--stages: must be a whole number of at least 1, got '0'"]),
        ("--schedule --segments x --micro-batches -3", ["--segments: must be", "--micro-batches: must be"]),
        ("--schedule --mode htm", ["--mode: must be one of hmt, rmt, backbone, got 'htm'"]),
        ("--schedule --stages 100 --segments 100 --micro-batches 11", ["are 110,000: at most 100,000"]),
        ("--schedule --picture there", ["--picture: must end in .png, .svg, .pdf, got 'there'"]),
        ("--schedule --picture nowhere/a.png", ["--picture: nowhere/a.png cannot be written"]),
        ("--schedule --gpus 8 --rows 1", ["--gpus: is for --compare", "--rows: is for --compare"]),
        ("--compare --stages 2", ["--stages: is for --schedule"]),
        ("--compare --shape 8b", ["--shape: must be one of 7b, 13b, 70b, got '8b'"]),
        ("--compare --gpus 8,,x", ["--gpus: must be a whole number of at least 1, got ''", "got 'x'"]),
        ("--compare --gpus 12", ["--gpus: 12 neither fill nodes of 8 nor are 1, 2 or 4 of one node"]),
        ("--compare --between-nodes 0", ["--between-nodes: must be a number above 0, got '0'"]),
        ("--compare --rate inf", ["--rate: must be a number above 0, got 'inf'"]),
        ("--compare --rate much", ["--rate: must be a number above 0, got 'much'"]),
        ("--compare --rows 100 --segments 10", ["100 rows x 10 segments are 1,000: at most 512 are estimated"]),
    ],
)
def test_mistakes_are_one_line_each(monkeypatch, capsys, tmp_path, words, lines):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *words.split())
    said = err.splitlines()
    assert code == 2 and not out and len(said) == len(lines)
    assert all(one.startswith("error: ") and wanted in one for one, wanted in zip(said, lines, strict=True)), err


@pytest.mark.parametrize("words", ["", "--schedule --compare", "--schedule --stage-length 3"])
def test_one_of_both(monkeypatch, capsys, words):
    code, out, err = run(monkeypatch, capsys, *words.split())
    assert code == 2 and not out and "error: " in err


def test_a_full_disk_is_no_traceback(monkeypatch, capsys, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hmt_ds.reporting.plots.plot_schedule", full)
    code, _, err = run(monkeypatch, capsys, "--schedule", "--picture", str(tmp_path / "a.png"))
    assert code == 2 and err == "error: --picture: [Errno 28] No space left on device\n"


def test_a_schedule_needs_no_torch():
    code = "import sys; sys.argv[1:] = ['plan', '--schedule']\nfrom hmt_ds import cli\ntry: cli.main()\n"
    code += "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, check=False).returncode == 0
