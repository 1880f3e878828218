"""Our own class from a converted folder, without the code in it."""

from pathlib import Path

import torch

from hmt_ds.backbones.converted import fill_memory, read_converted
from hmt_ds.backbones.load import build_model
from hmt_ds.backbones.model import BackboneError
from hmt_ds.memory import HMT, MemorySettings


def load_pretrained(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> HMT:
    """An HMT in evaluation mode, for :func:`hmt_ds.evaluation.generation.generate` and the rest.

    Args:
        folder: written by ``hmt-ds convert``; or a name on the hub.

    Raises:
        BackboneError: if it is no such folder, or weights are missing in it.
    """
    converted = read_converted(str(folder))
    if converted is None:
        raise BackboneError(f"{folder} was not written by hmt-ds convert")
    model = HMT(build_model(str(folder), dtype=dtype), MemorySettings(**converted["memory"]))
    wanted = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    if missing := sorted(wanted - set(fill_memory(model, str(folder)))):
        raise BackboneError(f"{folder} has no {missing[0]}")
    for name, child in model.named_children():
        if name != "backbone":  # that has its type already, and buffers that must keep theirs
            child.to(dtype)
    return model.to(device).eval()
