"""Load a folder written by ``hmt-ds convert`` as an :class:`HMT`, without running the Python code in it."""

from pathlib import Path

import torch

from hmt_ds.backbones.build_backbone import build_model
from hmt_ds.backbones.converted import fill_memory, read_converted
from hmt_ds.backbones.model import BackboneError
from hmt_ds.memory import HMT, MemorySettings


def load_pretrained(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> HMT:
    """Load a converted model in evaluation mode, ready for ``HMTForCausalLM.around`` (conversion/modeling_hmt.py).

    Args:
        folder: a folder that ``hmt-ds convert`` has written, or its name on the hub.
        dtype: type of the weights.
        device: device that the model is moved to.

    Raises:
        BackboneError: if the folder was not written by ``hmt-ds convert``, or lacks weights.
    """
    converted = read_converted(str(folder))
    if converted is None:
        raise BackboneError(f"{folder} was not written by hmt-ds convert")
    model = HMT(build_model(str(folder), dtype=dtype), MemorySettings(**converted["memory"]))
    wanted = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    if missing := sorted(wanted - set(fill_memory(model, str(folder)))):
        raise BackboneError(f"{folder} lacks the weight {missing[0]}")
    for name, child in model.named_children():
        if name != "backbone":  # loaded in its dtype already, with buffers that must keep float32
            child.to(dtype)
    return model.to(device).eval()
