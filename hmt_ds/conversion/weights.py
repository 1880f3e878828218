"""Weights by name, read one at a time from any kind of file, so that the whole model is never in memory at once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hmt_ds.checkpoint.fragment_reader import FragmentReader
from hmt_ds.checkpoint.fragments import WEIGHT
from hmt_ds.conversion.conversion_error import ConversionError, first_of
from hmt_ds.conversion.pickles import read_pickle


@dataclass(frozen=True)
class Weights:
    """The weights of a model by name, each read from its file on access.

    Attributes:
        shapes: shape of each weight, by name.
        read: reads a weight, by name, into host memory.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]

    def renamed(self, rename: Callable[[str], str | None]) -> "Weights":
        """Return the weights of this object under other names.

        Args:
            rename: gives the new name for an old one; None leaves the weight out.
        """
        old = {new: name for name in self.shapes if (new := rename(name)) is not None}
        return Weights({new: self.shapes[name] for new, name in old.items()}, lambda new: self.read(old[new]))

    def without_prefix(self, prefix: str) -> "Weights":
        """Return only the weights whose names start with a prefix, without the prefix in their names.

        Args:
            prefix: the prefix, such as ``backbone.``.
        """
        return self.renamed(lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)


def tensor_weights(found: dict[str, Tensor]) -> Weights:
    """Wrap a state dict as :class:`Weights`, whose tensors are read on access and may be memory-mapped.

    Args:
        found: the state dict, tensors by name.
    """
    found = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    return Weights({name: tuple(tensor.shape) for name, tensor in found.items()}, found.__getitem__)


def checkpoint_weights(checkpoint: Path) -> Weights:
    """Open the trained weights of an hmt_ds checkpoint in float32; parts that several ranks saved are joined when read.

    Args:
        checkpoint: folder of the checkpoint.
    """
    fragments = FragmentReader(checkpoint)

    def read(name: str) -> Tensor:
        whole = torch.empty(fragments.shapes[name], dtype=torch.float32)
        fragments.read(WEIGHT, name, 0, whole.view(-1))
        return whole

    return Weights({name: tuple(shape) for name, shape in fragments.shapes.items()}, read)


def folder_weights(folder: Path) -> Weights:
    """Open the weights of a Hugging Face folder: safetensors files, or else PyTorch's pickles if they hold no code.

    Raises:
        ConversionError: there are no weight files, one is unreadable, or some that the index names are missing.
    """
    files = weight_files(folder)
    if files and files[0].suffix == ".bin":
        return tensor_weights({name: tensor for file in files for name, tensor in read_pickle(file).items()})
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as saved:
                for name in saved.keys():  # noqa: SIM118
                    where[name], shapes[name] = file, tuple(saved.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ConversionError(f"{file} cannot be read: {error}: copy or download it again") from None

    def read(name: str) -> Tensor:
        with safe_open(where[name], framework="pt") as saved:
            return saved.get_tensor(name)

    return Weights(shapes, read)


def weight_files(folder: Path) -> list[Path]:
    """List the weight files of a Hugging Face folder: the single file, or else the shards that the index names.

    Raises:
        ConversionError: if there are no weight files, or some that the index names are missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                files = sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
            except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                raise ConversionError(
                    f"{index} is damaged: {type(error).__name__} {error}: copy or download it again"
                ) from None
            if lost := [file.name for file in files if not file.is_file()]:
                raise ConversionError(
                    f"{folder}: the file {first_of(lost)}, named by {index.name}, is missing: copy or download it again"
                )
            return files
    raise ConversionError(f"{folder} holds no model.safetensors and no pytorch_model.bin: name a folder with weights")
