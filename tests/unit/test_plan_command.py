"""`hmt-ds plan`: the drawn schedule, its figures, the comparison table, errors."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hmt_ds import cli
from hmt_ds.parallel.pipeline.schedule import UNIT_COSTS, Action, Costs, Kind, pipeline_schedule
from hmt_ds.planning.simulate import Machine, TimedAction, simulate
from hmt_ds.reporting.pipeline_timeline import STYLES, timeline_lines
from hmt_ds.reporting.plots import plot_schedule

PROJECT = Path(__file__).resolve().parents[2]


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Run the command in this process, without a terminal; return exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["hmt-ds", "plan", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, *capsys.readouterr()


def shaped(stages: int, segments: int, batches: int) -> list[str]:
    """Return the command-line words for a schedule of this shape."""
    names = {"stages": stages, "segments": segments, "micro-batches": batches}
    return ["--schedule", *(word for name, number in names.items() for word in (f"--{name}", str(number)))]


def test_schedule(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, *shaped(2, 2, 2))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    # a column is a quarter: four for a segment pass and for a summary pass over both micro-batches, backward twelve
    gradients = "B1.1--------B1.0--------B0.1--------B0.0--------t1.0"
    assert lines[1] == f"stage 0  s0.0s1.0F0.0F0.1F1.0F1.1{' ' * 16}{gradients[:-1]}"
    assert lines[2] == f"stage 1      s0.0s1.0F0.0F0.1F1.0F1.1{gradients}--------t0."
    assert lines[3:6] == ["time 22.75", "stage 0  0--------t0.0--------", "stage 1  0--------"]
    assert "\n".join(lines[-5:]) == (
        "time         28; forward passes take 1 (segment) and 0.5 (summary), backward passes 3 times that\n"
        "summaries    2 micro-batches per summary pass\n"
        "lower bound  28 for any schedule; met\n"
        "bubble       14.3% of a stage's time\n"
        "kept inputs  6 per stage, at its peak"
    )


def test_figures_of_unequal_stages(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, *shaped(4, 2, 3))
    assert "lower bound  48 for any schedule; this one is 8.3% above" in out
    _, out, _ = run(monkeypatch, capsys, *shaped(4, 2, 3), "--mode", "backbone")
    assert "kept inputs  1 to 4 per stage, at its peak" in out and "summary forward" not in out
    assert "bubble       33.3% of" in out


def test_long_schedules_are_cut_off(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, *shaped(8, 16, 8))
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 100
    assert "cut off at time 136.5 of 796; --picture FILE draws all of it" in lines
    assert sum(line.startswith("stage 7") for line in lines) == 6
    _, out, _ = run(monkeypatch, capsys, *shaped(60, 2, 2))
    assert sum(line.startswith("stage") for line in out.splitlines()) == 60  # at least one block is always drawn


def drawn(costs: Costs = UNIT_COSTS, width: int = 100, shape=(3, 2, 3)):
    """Return the timed actions of each stage, and the lines drawn for them."""
    schedule = pipeline_schedule(*shape, costs=costs)
    stages = simulate(schedule, Machine.uniform(costs, shape[0])).stages
    return stages, list(timeline_lines(stages, width))


@pytest.mark.parametrize("width", [40, 100, 163])
def test_every_action_is_drawn(width):
    """Joined end to end, the blocks contain each action once, at its time and in its style."""
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
            assert re.fullmatch(re.escape(repr(bar.action)[: min(2, stop - start)]) + ".*-*", text[start:stop])
            assert {styles[at] for at in range(start, stop)} == {STYLES[bar.action.kind, bar.action.backward][0]}
        busy = sum(round((bar.stop - bar.start) / unit) for bar in bars)
        assert len(text.replace(" ", "")) == len(styles) == busy


def test_actions_without_duration_are_not_drawn():
    _, lines = drawn()
    assert not any("r0" in line.plain for line in lines) and "recall" not in lines[-1].plain
    bars = [
        [
            TimedAction(Action(Kind.SEGMENT, 11, 0), 0, 1),
            TimedAction(Action(Kind.SEGMENT, 12, 0), 1, 1),
            TimedAction(Action(Kind.SUMMARY, 11, 0), 1, 1.5),
        ]
    ]
    assert [line.plain for line in timeline_lines(bars, 60)][1] == "stage 0  F11-s-"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(monkeypatch, capsys, tmp_path, suffix):
    file = tmp_path / f"schedule.{suffix}"
    code, out, _ = run(monkeypatch, capsys, "--schedule", "--stages", "2", "--picture", str(file))
    assert code == 0 and f"picture      {file}" in out
    assert file.read_bytes()[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[suffix]


def test_picture_shows_every_action(monkeypatch, tmp_path):
    """All actions of all stages, at their times, in one colour for each kind."""
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
        (number, f"{bar.action.kind}, {ways[bar.action.backward]}", bar.start, bar.stop - bar.start)
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
        ["", "pipeline", "not possible"],
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
        ("--schedule --stages 0", ["--stages: must be at least 1, got '0'"]),
        ("--schedule --segments x --micro-batches -3", ["--segments: must be", "--micro-batches: must be"]),
        ("--schedule --mode htm", ["--mode: must be 'hmt', 'rmt' or 'backbone', got 'htm'"]),
        ("--schedule --stages 100 --segments 100 --micro-batches 11", ["are 110,000: at most 100,000"]),
        ("--schedule --picture there", ["--picture: must end in .png, .svg, .pdf, got 'there'"]),
        ("--schedule --picture nowhere/a.png", ["--picture: nowhere/a.png cannot be written"]),
        (
            "--schedule --gpus 8 --rows 1",
            ["--gpus: only with a RECIPE or --compare, not --schedule", "--rows: only with --compare"],
        ),
        ("--compare --stages 2", ["--stages: only with --schedule"]),
        ("--compare --link 50GB/s", ["--link: only with a RECIPE"]),
        ("--schedule --foo", ["--foo: plan has no such option without"]),
        ("", ["plan needs one of: a RECIPE (or the name of a known model), --schedule, --compare"]),
        ("a.yaml --compare", ["plan needs one of: a RECIPE"]),
        ("nowhere.yaml", ["nowhere.yaml: no such recipe"]),
        ("llama-9", ["llama-9: no such recipe, and not a known model: name a recipe or one of Llama-2-7b-hf, "]),
        (
            "a.yaml --gpus 8xH10",
            [
                "--gpus: must be like 16xH100-80GB, with one of H100, H200, ",
            ],
        ),
        ("a.yaml --gpus 0xH100", ["--gpus: must be like 16xH100-80GB"]),
        ("a.yaml --gpus 9xH100", ["--gpus: 9 GPUs cannot be spread evenly over 2 nodes"]),
        ("a.yaml --link 50", ["--link: must be like 50GB/s (bytes) or 400Gb/s (bits), got '50'"]),
        ("--compare --shape 8b", ["--shape: must be a known size of Llama (7b, 13b, 70b), got '8b'"]),
        ("--compare --gpus 8,,x", ["--gpus: must be whole numbers of at least 1, such as 8,64, got '8,,x'"]),
        ("--compare --gpus 12", ["--gpus: must be 1, 2, 4 or a multiple of 8 (the GPUs of a node), got 12"]),
        ("--compare --between-nodes 0", ["--between-nodes: must be greater than 0, got '0'"]),
        ("--compare --rate inf", ["--rate: must be a finite number, got 'inf'"]),
        ("--compare --rate much", ["--rate: must be a number, got 'much'"]),
        ("--compare --rows 100 --segments 10", ["100 rows x 10 segments are 1,000: at most 512 can be estimated"]),
    ],
)
def test_each_problem_is_one_line(monkeypatch, capsys, tmp_path, words, lines):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *words.split())
    said = err.splitlines()
    assert code == 2 and not out and len(said) == len(lines)
    assert all(one.startswith("error: ") and wanted in one for one, wanted in zip(said, lines, strict=True)), err


@pytest.mark.parametrize("words", ["", "--schedule --compare", "--schedule --stage-length 3"])
def test_exactly_one_of_schedule_and_compare(monkeypatch, capsys, words):
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
