"""The recipe that evaluates a folder written by ``hmt-ds convert``: its model and memory, defaults for the rest."""

import json
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def recipe_file_of(folder: Path) -> Path:
    """Return the file that tells how to evaluate a folder: recipe.yaml of a run, config.json of a converted folder.

    Args:
        folder: the folder.
    """
    converted = folder / CONFIG_FILE
    is_converted = not (folder / "recipe.yaml").exists() and read_converted_config(converted) is not None
    return converted if is_converted else folder / "recipe.yaml"


def read_converted_config(file: Path) -> dict[str, Any] | None:
    """Read config.json of a folder that ``hmt-ds convert`` wrote.

    Args:
        file: path of config.json.

    Returns:
        Its content; None if the file is unreadable or was not written by ``hmt-ds convert``.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(values, dict) and values.get("model_type") == "hmt" and isinstance(values.get("memory"), dict)
    return values if is_ours else None


def folder_recipe(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe, as nested dicts, that evaluates a folder written by ``hmt-ds convert``, without documents.

    Args:
        folder: the folder.
        config: content of its config.json.
    """
    return {
        "model": {"source": str(folder), "precision": PRECISIONS.get(str(config.get("dtype")), "fp32")},
        "memory": config["memory"],
        "data": {},
        # required keys that an evaluation ignores, and rows enough to read with another document's memories
        "training": {"output": str(folder), "steps": 1, "batch_size": 4},
        "optimizer": {"lr": 1e-3},
        "deepspeed": "ds_configs/zero0.json",
    }


def complete_data(values: dict[str, Any], folder: Path) -> list[str]:
    """Set a converted folder's training documents, which recipes require, to the held-out ones, in place.

    Args:
        values: the folder's recipe as nested dicts, with the overrides applied.
        folder: the converted folder.

    Returns:
        A line for the user if no documents are named, else nothing.
    """
    data = values["data"] if isinstance(values["data"], dict) else {}
    if not data.get("validation") and not data.get("retrieval"):
        ways = "name some with --data.validation.source FILE or --data.retrieval.kind keys"
        return [f"{folder} is a converted folder, which has no documents to evaluate on: {ways}"]
    if not data.get("retrieval"):
        data.setdefault("train", data["validation"])
    return []
