"""Named weights that are read one at a time, wherever they lie: no model is ever held whole."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmt_ds.checkpoint.fragments import WEIGHT
from hmt_ds.checkpoint.restore import FragmentReader
from hmt_ds.conversion.conversion_error import ConversionError, shown
from hmt_ds.conversion.pickles import read_pickle


@dataclass(frozen=True)
class Weights:
    """Weights by name.

    Attributes:
        shapes: of each.
        read: one of them, on the host.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def renamed(self, rename: Callable[[str], str | None]) -> "Weights":
        """The same under other names; those whose name becomes None are left aside."""
        old = {new: name for name in self.shapes if (new := rename(name)) is not None}
        return Weights({new: self.shapes[name] for new, name in old.items()}, lambda new: self.read(old[new]))

    def without_prefix(self, prefix: str) -> "Weights":
        """Those whose names begin so, without it."""
        return self.renamed(lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)


def tensors(found: dict[str, Tensor]) -> Weights:
    """Of a state dict; its tensors may be mapped into memory, and are then read when they are wanted."""
    found = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    return Weights({name: tuple(tensor.shape) for name, tensor in found.items()}, found.__getitem__)


def of_checkpoint(checkpoint: Path) -> Weights:
    """The trained weights of a checkpoint of ours, float32, put together from their fragments."""
    parts = FragmentReader(checkpoint)

    def read(name: str) -> Tensor:
        whole = torch.empty(parts.shapes[name], dtype=torch.float32)
        parts.read(WEIGHT, name, 0, whole.view(-1))
        return whole

    return Weights({name: tuple(shape) for name, shape in parts.shapes.items()}, read)


def of_folder(folder: Path) -> Weights:
    """The weights of a Hugging Face folder: safetensors, or else pickles without code in them.

    Raises:
        ConversionError: if there are none, or not all that the index names.
    """
    files = weight_files(folder)
    if files and files[0].suffix == ".bin":
        return tensors({name: tensor for file in files for name, tensor in read_pickle(file).items()})
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as saved:
                for name in saved.keys():  # noqa: SIM118
                    where[name], shapes[name] = file, tuple(saved.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ConversionError(f"{file} cannot be read: {error}") from None

    def read(name: str) -> Tensor:
        with safe_open(where[name], framework="pt") as saved:
            return saved.get_tensor(name)

    return Weights(shapes, read)


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            files = sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
            if lost := [file.name for file in files if not file.is_file()]:
                raise ConversionError(f"{folder}: {shown(lost)} is missing")
            return files
    raise ConversionError(f"{folder} holds no model.safetensors and no pytorch_model.bin")
