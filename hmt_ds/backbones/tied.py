"""Weights that a configuration ties, and a model's files hold apart."""

from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from hmt_ds.backbones.converted import files_of
from hmt_ds.backbones.model import BackboneError

FILES = ("model.safetensors", "pytorch_model.bin")
ROWS = 4096  # compared at once: an embedding may have gigabytes


def check_tied(model: Any, source: str) -> None:
    """Weights that are one in the model must be one in its files: transformers would train both, a ring one of them.

    Args:
        model: with or without its numbers.
        source: the folder or hub name that it was read from.

    Raises:
        BackboneError: saying which differ, and what to do.
    """
    tied = model.all_tied_weights_keys
    stored = stored_weights(source) if tied else {}
    for pair in tied.items():
        one, other = (stored.get(name, stored.get(name.removeprefix(f"{model.base_model_prefix}."))) for name in pair)
        if one is not None and other is not None and differ(one, other):
            raise BackboneError(
                f"model {source!r}: {pair[0]} is not {pair[1]} in its files, and its config ties them: say "
                "tie_word_embeddings false in its config.json"
            )


def stored_weights(source: str) -> dict[str, Any]:
    """A model's weights by their names in its files. What stands for one gives its rows, and reads no others."""
    files = next((found for name in FILES if (found := files_of(source, name))), [])
    return {name: weight for file in files for name, weight in weights_in(file).items()}


def weights_in(file: Path) -> dict[str, Any]:
    """The same for one file."""
    if file.suffix == ".safetensors":
        opened = safe_open(file, framework="pt")
        return {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    mapped = is_zipfile(file)  # older files are read as a whole
    return dict(torch.load(file, map_location="cpu", mmap=mapped, weights_only=True))


def differ(one: Any, other: Any) -> bool:
    """Whether two stored weights are not equal; a block of rows is read at a time."""
    first = 0
    while True:
        rows: list[Tensor] = [weight[first : first + ROWS] for weight in (one, other)]
        if not torch.equal(*rows):
            return True
        if len(rows[0]) < ROWS:
            return False
        first += ROWS
