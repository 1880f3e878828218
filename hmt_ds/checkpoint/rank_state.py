"""A rank's state besides weights: the memories of the documents it is reading, and the states of its
random generators."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hmt_ds.memory import MemoryState


def rank_tensors(memory: MemoryState | None, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copy the memories that a rank carries between steps, and the states of its random generators, to host memory.

    Args:
        memory: memories of each row after the last step; None before the first.
        device: the rank's device, whose random generator is saved too.

    Returns:
        Tensors by name, and texts by name for the metadata of a safetensors file.
    """
    tensors = {} if memory is None else {f"memory/{k}": v.detach().cpu().clone() for k, v in vars(memory).items()}
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    tensors["random/torch"] = torch.get_rng_state().clone()
    tensors["random/numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    tensors["random/python"] = torch.tensor(numbers, dtype=torch.int64)
    if device.type != "cpu":
        tensors["random/device"] = torch.get_device_module(device).get_rng_state(device).clone()
    return tensors, {"random": json.dumps({"numpy": [kind, *rest], "python": [version, gauss]})}


def write_rank(file: Path, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    """Write the memories that a rank carries between steps, and its random states, to a safetensors file.

    Args:
        file: path of the file.
        tensors: memories and random states by name.
        texts: metadata by name.
    """
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata=texts)


def read_random_states(file: Path, device: torch.device) -> None:
    """Restore the states of this rank's random generators (torch, NumPy, Python, GPU) from a checkpoint.

    Args:
        file: the rank's file in the checkpoint.
        device: device of this rank.
    """
    with safe_open(file, framework="pt") as saved:
        texts = json.loads(saved.metadata()["random"])
        torch.set_rng_state(saved.get_tensor("random/torch"))
        version, gauss = texts["python"]
        random.setstate((version, tuple(saved.get_tensor("random/python").tolist()), gauss))
        kind, *rest = texts["numpy"]
        np.random.set_state((kind, saved.get_tensor("random/numpy").numpy().astype(np.uint32), *rest))
        if device.type != "cpu" and "random/device" in saved.keys():  # noqa: SIM118
            torch.get_device_module(device).set_rng_state(saved.get_tensor("random/device"), device)


def read_memories(
    checkpoint: Path, rows: range, rows_per_file: int, device: torch.device, dtype: torch.dtype
) -> MemoryState | None:
    """Read the memories that some rows of the global batch carried between steps, from the files of the ranks that
    saved them.

    Args:
        checkpoint: folder of the checkpoint.
        rows: indices of the rows in the global batch.
        rows_per_file: rows that each rank had when the checkpoint was saved.
        device: device of the result.
        dtype: dtype of the result; memories saved in another one are converted.

    Returns:
        The memory state of the rows, in the order of ``rows``; None if none was saved.
    """
    parts: list[dict[str, Tensor]] = []
    for row in rows:
        with safe_open(checkpoint / rank_file(row // rows_per_file), framework="pt") as saved:
            names = [name for name in saved.keys() if name.startswith("memory/")]  # noqa: SIM118
            at = row % rows_per_file
            parts.append({n.removeprefix("memory/"): saved.get_slice(n)[at : at + 1] for n in names})
    if not parts or not parts[0]:
        return None
    whole = {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
    return MemoryState(**{name: t.to(dtype) if t.is_floating_point() else t for name, t in whole.items()})


def rank_file(rank: int) -> str:
    """Return the name of the file in a checkpoint with a rank's carried memories and random states."""
    return f"rank_{rank:05d}.safetensors"
