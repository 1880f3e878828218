"""What a person sees of a run."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from hmt_ds.config import keys
from hmt_ds.memory import MemorySettings
from hmt_ds.parallel.distributed import join, leave
from hmt_ds.planning.flops import peak_flops, positions_per_token, useful_flops_per_token
from hmt_ds.recipe import Recipe
from hmt_ds.reporting.metrics import MetricsLog, Monitors, read_metrics
from hmt_ds.reporting.plots import plot_loss, plot_perplexity
from hmt_ds.reporting.tables import keys_table, perplexity_table, print_recipe

ROWS = [
    SimpleNamespace(segments_read=1, below=2, tokens=1200, memory_on=18.0, memory_off=20.0),
    SimpleNamespace(segments_read=2, below=4, tokens=0, memory_on=float("nan"), memory_off=float("nan")),
]


def text_of(table) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return console.export_text()


def test_log_goes_on_after_the_step_that_was_saved(tmp_path):
    """What came after the checkpoint is done again; a line that a kill tore is no line."""
    file = tmp_path / "metrics.jsonl"
    log = MetricsLog(file)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1 / step})
    with file.open("a") as out:
        out.write('{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 3]
    MetricsLog(file, resume_step=2).write({"step": 3, "loss": 0.1})
    assert [(row["step"], row["loss"]) for row in read_metrics(file)] == [(1, 1.0), (2, 0.5), (3, 0.1)]
    assert len(file.read_text().splitlines()) == 3


@pytest.fixture
def alone(monkeypatch):
    """A process group of one: DeepSpeed's monitors ask for their rank."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    join()
    yield
    leave()


@pytest.mark.parametrize("wandb", ["off", "offline"])
def test_monitors_write_what_they_are_given(alone, tmp_path, monkeypatch, wandb):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monitors = Monitors(tmp_path, wandb=wandb, project="tests", tensorboard=True, csv=True)
    monitors.write({"step": 7, "loss": 2.5, "mfu": None})
    monitors.close()
    (csv,) = tmp_path.glob("csv/*loss.csv")
    assert "7,2.5" in csv.read_text().replace(" ", "")
    assert not list(tmp_path.glob("csv/*mfu.csv")) and list(tmp_path.glob("tensorboard/events*"))
    assert bool(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == (wandb == "offline")


def test_perplexity_table():
    text = text_of(perplexity_table(ROWS, "held-out"))
    assert "1,200" in text and "18.00" in text and "20.00" in text and "-10.00%" in text
    assert "2 to 3" in text and "nan" not in text


def test_every_key_is_listed_with_its_meaning():
    text = text_of(keys_table(keys(Recipe)))
    assert all(name in text for name, _ in keys(Recipe))
    assert "whole | frozen | lora" in text and "required" in text


def test_recipe_is_printed_so_that_it_reads_back(capsys):
    import yaml

    values = {"model": {"source": {"model_type": "llama"}, "tokenizer": None}, "steps": 3}
    print_recipe(values)
    assert yaml.safe_load(capsys.readouterr().out) == values


def test_pictures(tmp_path):
    rows = [json.loads(f'{{"step": {n}, "loss": {8 - n / 5}}}') for n in range(1, 15)]
    plot_loss(rows, tmp_path / "loss.png")
    plot_perplexity(ROWS, tmp_path / "perplexity.png")
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_useful_flops():
    """By hand: 10 + 2 sensory + 2 prompts + 5 + 2 of the summary are 21 positions for 10 tokens."""
    settings = MemorySettings("hmt", segment_length=10, recall_dim=4, sensory_tokens=2)
    assert positions_per_token(settings) == 2.1
    assert useful_flops_per_token(100, 100, settings) == 6 * 100 * 2.1
    assert useful_flops_per_token(100, 0, settings) == 4 * 100 * 2.1
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and peak_flops("some processor") is None
