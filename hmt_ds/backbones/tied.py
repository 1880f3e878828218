"""Check that weights which a configuration ties are stored with equal values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from hmt_ds.backbones.converted import model_files
from hmt_ds.backbones.model import BackboneError
from hmt_ds.backbones.transformers_internals import tied_weights

FILES = ("model.safetensors", "pytorch_model.bin")
ROWS = 4096  # compared at a time: an embedding may have gigabytes


class Rows(Protocol):
    """Protocol of a stored weight whose rows are read from disk when indexed: safetensors' slice, or a
    mapped tensor."""

    def __getitem__(self, rows: slice) -> Tensor: ...


def check_tied(model: PreTrainedModel, source: str) -> None:
    """Check that weights which a model's configuration ties are stored with equal values.

    transformers would otherwise load both and train them apart, or a pipeline would use only one.

    Args:
        model: the model, of which only the configuration and names are used; may be on the meta device.
        source: the folder or hub name that the model was read from.

    Raises:
        BackboneError: naming two tied weights that differ, and how to untie them.
    """
    tied = tied_weights(model)
    stored: Mapping[str, Rows] = stored_weights(source) if tied else {}
    for pair in tied.items():
        one, other = (stored.get(name, stored.get(name.removeprefix(f"{model.base_model_prefix}."))) for name in pair)
        if one is not None and other is not None and differ(one, other):
            raise BackboneError(
                f"model {source!r}: {pair[0]} and {pair[1]} differ in its files, but its config ties them: set "
                "tie_word_embeddings to false in its config.json"
            )


def stored_weights(source: str) -> dict[str, Rows]:
    """Return the weights in a model's files by name, without reading their values.

    Args:
        source: a folder or hub name.
    """
    files = next((found for name in FILES if (found := model_files(source, name))), [])
    return {name: weight for file in files for name, weight in weights_in(file).items()}


def weights_in(file: Path) -> dict[str, Rows]:
    """Return the weights in one safetensors or PyTorch file by name, without reading their values."""
    if file.suffix == ".safetensors":
        opened = safe_open(file, framework="pt")
        return {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    mapped = is_zipfile(file)  # files in torch's format before 1.6 cannot be mapped, and are read whole
    return dict(torch.load(file, map_location="cpu", mmap=mapped, weights_only=True))


def differ(one: Rows, other: Rows) -> bool:
    """Return whether two stored weights have different values, reading a block of rows at a time.

    Args:
        one, other: weights of equal shape.
    """
    first = 0
    while True:
        block, other_block = one[first : first + ROWS], other[first : first + ROWS]
        if not torch.equal(block, other_block):
            return True
        if len(block) < ROWS:
            return False
        first += ROWS
