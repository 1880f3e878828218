"""Write weights as safetensors files (shards), with one shard at a time in memory, and verify them."""

import json
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.weights import Weights

MAX_SHARD = "5GB"


def plan_shards(weights: Weights, dtype: torch.dtype, stem: str, max_shard: str = MAX_SHARD) -> dict[str, list[str]]:
    """Distribute weights over files by their shapes alone.

    Args:
        weights: weights to write.
        dtype: dtype in which floating-point weights are written.
        stem: prefix of the file names, such as ``model``.
        max_shard: largest size of a file, such as ``5GB``.

    Returns:
        The names of the weights in each file, by file name.
    """
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in weights.shapes.items()}
    pattern = f"{stem}{{suffix}}.safetensors"
    return split_torch_state_dict_into_shards(
        empty, filename_pattern=pattern, max_shard_size=max_shard
    ).filename_to_tensors


def write_shards(folder: Path, weights: Weights, dtype: torch.dtype, stem: str, max_shard: str = MAX_SHARD) -> None:
    """Write all weights into safetensors files, with one file at a time in memory, and read each back.

    Args:
        folder: folder to write to.
        weights: weights to write.
        dtype: dtype in which floating-point weights are written.
        stem: prefix of the file names, such as ``model``.
        max_shard: largest size of a file, such as ``5GB``.

    Raises:
        ConversionError: a file reads back differently.
    """
    files = plan_shards(weights, dtype, stem, max_shard)
    with tqdm(total=2 * len(weights.shapes), unit="weight", desc="writing", mininterval=0.5, leave=False) as bar:
        for file, names in files.items():
            shard: dict[str, Tensor] = {}
            for name in names:
                shard[name] = to_dtype(weights.read(name), dtype)
                bar.update()
            save_file(shard, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(folder.stat().st_mode & 0o666)  # safetensors lets only the owner read its files
            del shard
        if len(files) > 1:
            write_index(folder, files, weights, dtype, stem)
        bar.set_description("verifying")
        for file, names in files.items():
            verify_shard(folder / file, names, weights, dtype, bar)


def to_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a floating-point weight to another dtype; return a weight of integers unchanged.

    Args:
        weight: the weight, of any shape.
        dtype: the dtype.
    """
    return (weight.to(dtype) if weight.is_floating_point() else weight).contiguous()


def write_index(folder: Path, files: dict[str, list[str]], weights: Weights, dtype: torch.dtype, stem: str) -> None:
    """Write transformers' index file (``model.safetensors.index.json``), which names the file of each weight.

    Args:
        folder: folder to write to.
        files: names of the weights in each file, by file name.
        weights: the weights, of which only shapes are used.
        dtype: dtype of the written floating-point weights.
        stem: prefix of the file names, such as ``model``.
    """
    numbers = sum(torch.Size(shape).numel() for shape in weights.shapes.values())
    index = {
        "metadata": {"total_size": numbers * dtype.itemsize, "total_parameters": numbers},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def verify_shard(file: Path, names: list[str], weights: Weights, dtype: torch.dtype, bar: tqdm) -> None:
    """Read a safetensors file back and compare each weight with its source, bit for bit.

    Args:
        file: the written file.
        names: names of the weights that were written.
        weights: the source of the weights.
        dtype: dtype in which floating-point weights were written.
        bar: progress bar, advanced by the bytes of each weight.

    Raises:
        ConversionError: naming the weight that differs.
    """
    with safe_open(file, framework="pt") as saved:
        if set(saved.keys()) != set(names):
            raise ConversionError(
                f"{file.name} does not hold the weights that were written: the disk may be faulty, write to another one"
            )
        for name in names:
            if not bitwise_equal(saved.get_tensor(name), to_dtype(weights.read(name), dtype)):
                raise ConversionError(
                    f"{file.name}: {name} differs from what was written: the disk may be faulty, write to another one"
                )
            bar.update()


def bitwise_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal bit for bit, so that NaN equals itself.

    Args:
        one, other: tensors of equal shape and dtype.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
