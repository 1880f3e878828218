"""A folder with a correct recipe and broken files, for tests of error messages."""

import json
from pathlib import Path
from typing import Any

import yaml

from hmt_ds.data import train_sentencepiece

VOCABULARY = 300
LLAMA = {"model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16}
LLAMA |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}


def make_folder(folder: Path) -> None:
    """Write a correct recipe and broken files."""
    (folder / "text.txt").write_text("A short document.\n")  # less than one segment
    train_sentencepiece([folder / "text.txt"], folder / "tokenizer", VOCABULARY)
    recipe: dict[str, Any] = {
        "model": {"source": LLAMA, "tokenizer": "tokenizer", "precision": "fp32"},
        "memory": {"segment_length": 16, "sensory_tokens": 4},
        "data": {"train": {"source": "text.txt"}, "cache_dir": "cache"},
        "training": {"output": "run", "steps": 1, "bptt_depth": 1},
        "optimizer": {"lr": 1e-3},
        "deepspeed": "ds_configs/zero2.json",
    }
    against = {"gradient_clipping": 5.0, "zero_optimization": {"stage": 7}}
    auto = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}
    number, stage = {"zero_optimization": 3}, {"zero_optimization": {"stage": "two"}}
    files = {"recipe.yaml": yaml.safe_dump(recipe), "broken.yaml": "a: [", "list.yaml": "[1]", "empty.yaml": "{}"}
    files |= {"against.json": json.dumps(against), "auto.json": json.dumps(auto)}
    on_disk = {"device": "nvme", "nvme_path": "/tmp"}
    nvme = {"zero_optimization": {"stage": 3, "offload_optimizer": on_disk, "offload_param": on_disk}}
    files |= {"slip.json": '{"gradient_cliping": 1.0}', "nvme.json": json.dumps(nvme)}
    files |= {"number.json": json.dumps(number), "stage.json": json.dumps(stage), "empty.txt": " \n", "data.doc": "x"}
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)))
    (folder / "no_weights").mkdir()
    (folder / "no_weights/config.json").write_text(json.dumps(LLAMA))
    (folder / "old").mkdir()
    (folder / "old" / "metrics.jsonl").write_text('{"step": 1}\n')


def errors_in(said: str) -> list[str]:
    """Return the lines that report problems."""
    return [line for line in said.splitlines() if line.startswith("error: ")]


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Return the contents of all files and folders below a folder, except the cache, where documents may be added."""
    paths = [path for path in folder.rglob("*") if folder / "cache" not in (path, *path.parents)]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}
