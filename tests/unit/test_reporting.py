"""What users see of a run: progress, metrics, tables, plots."""

import json
import resource
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2 as pb

from hmt_ds.config.recipe import Recipe
from hmt_ds.config.sections import keys
from hmt_ds.memory import MemorySettings
from hmt_ds.planning.flops import peak_flops, positions_per_token, useful_flops_per_token
from hmt_ds.reporting import plots
from hmt_ds.reporting.evaluation_tables import evaluation_table
from hmt_ds.reporting.metrics import Metrics, read_metrics
from hmt_ds.reporting.plots import plot_evaluation, plot_loss
from hmt_ds.reporting.tables import keys_markdown, keys_table, print_recipe

NAN = float("nan")
COSTS = {"swapped": (0.12, 0.11, 0.13), "none": (-0.01, -0.02, 0.0)}


def loss_row(first: int, below: int, tokens: int = 1200, **changes: Any) -> Any:
    usual = {"perplexity": 20.5, "nats": (3.02, 2.9, 3.1), "costs": COSTS}
    return SimpleNamespace(first=first, below=below, tokens=tokens, **usual | changes)


NOTHING = loss_row(2, 4, 0, perplexity=NAN, nats=(NAN,) * 3, costs=dict.fromkeys(COSTS, (NAN,) * 3))
ROWS, POSITIONS = [loss_row(1, 2), NOTHING], [loss_row(0, 12), loss_row(12, 24)]


def text_of(table) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return console.export_text()


def test_log_goes_on_after_the_step_that_was_saved(tmp_path):
    """Rows after the checkpoint are dropped, because their steps are taken again; so is a line cut short by a kill."""
    log, table = tmp_path / "metrics.jsonl", tmp_path / "metrics.csv"
    logs = Metrics(tmp_path, csv=True)
    for step in (1, 2, 13):
        logs.write({"step": step, "loss": 1 / step, "mfu": None})
    log.write_text(log.read_text() + '{"step": 2}')  # as if torn where it looks whole
    table.write_text(table.read_text() + "1")
    assert [row["step"] for row in read_metrics(log)] == [1, 2, 13, 2]
    Metrics(tmp_path, 2, csv=True).write({"step": 3, "loss": 0.1, "mfu": None})
    assert [(row["step"], row["loss"]) for row in read_metrics(log)] == [(1, 1.0), (2, 0.5), (3, 0.1)]
    assert len(log.read_text().splitlines()) == 3
    assert table.read_text() == "step,loss,mfu\n1,1.0,\n2,0.5,\n3,0.1,\n"
    Metrics(tmp_path, 0, csv=True).write({"step": 1, "loss": 1.5, "mfu": None})
    assert table.read_text() == "step,loss,mfu\n1,1.5,\n"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files: a write beyond it stops in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("room", "lines"), [(52, 2), (9, 0)], ids=["some", "none"])
def test_no_room_for_the_log(tmp_path, caplog, room, lines):
    """One warning for each file; what found no room is written when there is some, and nothing is half a line."""
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 7)]
    logs = Metrics(tmp_path, csv=True)
    with largest_file(room):
        for row in rows[:5]:
            logs.write(row)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and {record.levelname for record in caplog.records} == {"WARNING"}, said
    assert "metrics.jsonl cannot be written: [Errno 27]" in said[0] and "metrics.csv" in said[1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == lines
    assert read_metrics(tmp_path / "metrics.jsonl") == rows[:lines]
    logs.write(rows[5])
    assert read_metrics(tmp_path / "metrics.jsonl") == rows
    table = (tmp_path / "metrics.csv").read_text().splitlines()
    assert table == ["step,loss", *(f"{row['step']},{row['loss']}" for row in rows)]
    assert len(caplog.records) == 2


def test_a_log_is_cut_without_room(tmp_path):
    """A resume on a full disk keeps the rows before the checkpoint."""
    logs = Metrics(tmp_path)
    for step in (1, 2, 3):
        logs.write({"step": step})
    with largest_file(0):
        Metrics(tmp_path, 2)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def wandb_records(file: Path) -> Iterator[pb.Record]:
    """The records in wandb's file: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        at += rest if (rest := 32768 - at % 32768) < 7 else 0
        if kind in (1, 4):  # whole, or the last part
            yield pb.Record.FromString(whole)
            whole = b""


def test_wandb_goes_on_in_the_same_run(tmp_path, monkeypatch):
    """Each start writes its own file of one wandb run; a step that is taken again appears again with its number."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        recipe = {"training": {"steps": resume_step}}
        logs = Metrics(tmp_path, resume_step, wandb="online", project="tests", recipe=recipe)
        for step in steps:
            logs.write({"step": step, "loss": 1 / step, "mfu": None})
        logs.close()
        time.sleep(1.1)  # wandb names its folders by the second
    found, recipes = [], []
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        records = list(wandb_records(file))
        runs = {(record.run.run_id, record.run.project) for record in records if record.HasField("run")}
        assert runs == {((tmp_path / "wandb_run_id").read_text(), "tests")}
        assert any(r.metric.glob_name == "train/*" and r.metric.step_metric == "train/step" for r in records)
        found.append([])
        updates = [update for r in records for update in (*r.run.config.update, *r.config.update)]
        recipes.append({update.key: json.loads(update.value_json) for update in updates}["training"])
        for record in (record for record in records if record.HasField("history")):
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found[-1].append({key: values[key] for key in values if key.startswith("train/")})
    rows = [{"train/step": step, "train/loss": 1 / step} for step in (1, 2, 3, 3, 4)]
    assert found == [rows[:3], rows[3:]]
    assert recipes == [{"steps": 0}, {"steps": 2}]


def test_tensorboard_hides_what_is_done_again(tmp_path):
    for resume_step, steps, scale in ((0, (1, 2, 3, 4), 1.0), (2, (3,), 8.0)):
        logs = Metrics(tmp_path, resume_step, tensorboard=True)
        for step in steps:
            logs.write({"step": step, "loss": step * scale, "mfu": None})
        logs.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 24.0)]


def test_evaluation_table():
    text = text_of(evaluation_table(ROWS, POSITIONS, "held-out"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    found = "1,200 20.50 3.020 [2.900, 3.100] 0.120 [0.110, 0.130] -0.010 [-0.020, 0.000]"
    assert [line for line in lines if found in line] == [
        f"{place} {found}" for place in ("1", "position 0 to 11", "12 to 23")
    ]
    assert "2 to 3 0 - - - -" in lines


def test_a_backbone_has_one_column_and_one_document_no_interval():
    row = loss_row(1, 2, nats=(3.02, NAN, NAN), costs={})
    lines = text_of(evaluation_table([row], [], "held-out")).splitlines()
    assert "1 1,200 20.50 3.020" in [" ".join(line.split()) for line in lines]
    assert not any("cost" in line for line in lines)


def test_every_key_is_listed_with_its_meaning():
    text = text_of(keys_table(keys(Recipe)))
    assert all(name in text for name, _ in keys(Recipe))
    assert "whole | frozen | lora" in text and "required" in text


def test_the_table_of_keys_is_up_to_date():
    """Written by `hmt-ds keys --markdown > hmt_ds/config/KEYS.md`."""
    text = keys_markdown(keys(Recipe))
    leaves = [name for name, field in keys(Recipe) if not hasattr(field.annotation, "__pydantic_fields__")]
    assert all(text.count(f"| `{name}` |") == 1 for name in leaves) and text.count("\n| `") == len(leaves)
    assert (Path(__file__).parents[2] / "hmt_ds" / "config" / "KEYS.md").read_text() == text


def test_recipe_is_printed_so_that_it_reads_back(capsys):
    import yaml

    values = {"model": {"source": {"model_type": "llama"}, "tokenizer": None}, "steps": 3}
    print_recipe(values)
    assert yaml.safe_load(capsys.readouterr().out) == values


def test_pictures(tmp_path):
    rows = [json.loads(f'{{"step": {n}, "loss": {8 - n / 5}}}') for n in range(1, 15)]
    plot_loss(rows, tmp_path / "loss.png")
    plot_evaluation(ROWS, POSITIONS, tmp_path / "evaluation.png")
    plot_evaluation([loss_row(1, 2, costs={})], [loss_row(0, 6, costs={})], tmp_path / "backbone.png")
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_nothing_read_has_a_place_on_the_axis(tmp_path, monkeypatch):
    """On a logarithmic one 0 is nowhere."""
    figures, close = [], plots.plt.close
    monkeypatch.setattr(plots.plt, "close", figures.append)
    plot_evaluation([loss_row(n, n + 1) for n in (0, 1, 2)], POSITIONS, tmp_path / "evaluation.png")
    axes = figures[0].axes[0]
    places = [axes.transData.transform((x, 18.0))[0] for x in axes.get_xticks()]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    left, right = axes.bbox.x0, axes.bbox.x1
    assert left < places[0] < places[1] - 50 < places[2] - 100 < right - 100  # pixels
    close(figures[0])


def test_useful_flops():
    """By hand: 10 + 2 sensory + 2 prompts + 5 + 2 of the summary are 21 positions for 10 tokens."""
    settings = MemorySettings(segment_length=10, recall_dim=4, sensory_tokens=2)
    assert positions_per_token(settings) == 2.1
    assert useful_flops_per_token(100, 100, settings) == 6 * 100 * 2.1
    assert useful_flops_per_token(100, 0, settings) == 4 * 100 * 2.1
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("some processor") is None
