"""Recognize a checkpoint's format, and read files of HMT-pytorch and DeepSpeed with weights named as in hmt_ds."""

import contextlib
import io
import re
from pathlib import Path
from typing import Literal

from torch import Tensor

from hmt_ds.checkpoint.files import MANIFEST, list_checkpoints
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.pickles import one_line_errors, read_pickle, read_state_dict, weights_only
from hmt_ds.conversion.weights import Weights, folder_weights, tensor_weights
from hmt_ds.memory.settings import Mode

Kind = Literal["run", "checkpoints", "checkpoint", "hugging_face", "state_dict", "deepspeed"]
REFERENCE = {
    "memory_cell.memory": "initial_prompt.embeddings.weight",
    "mem": "summary_prompt.embeddings.weight",
    "cross_attn.wq.weight": "recall.query.weight",
    "cross_attn.wk.weight": "recall.key.weight",
}
MEMORY_MODULES = ("sink.", "initial_prompt.", "write_prompt.", "memory_embedding.", "summary_prompt.", "recall.")
BACKBONES = ("memory_cell.model.", "backbone.model.", "hmt.backbone.model.")
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # prefixes of DistributedDataParallel and torch.compile
PEFT = (("base_model.model.", ""), (".base_layer.", "."))  # peft's names of what it has wrapped


def kind_of(source: Path) -> Kind:
    """Recognize the format of a checkpoint's file or folder.

    Args:
        source: path of the file or folder.

    Returns:
        ``run``, ``checkpoints``, ``checkpoint``, ``hugging_face``, ``deepspeed`` or ``state_dict``.

    Raises:
        ConversionError: the path does not exist, or has no known format.
    """
    if source.is_file():
        return "state_dict"
    if not source.is_dir():
        raise ConversionError(f"{source}: no such file or folder: name a run, a checkpoint or a model folder")
    # the first match counts: a folder can show several signs
    signs: dict[Kind, bool] = {
        "checkpoint": (source / MANIFEST).is_file(),
        "run": (source / "recipe.yaml").is_file() and (source / "checkpoints").is_dir(),
        "hugging_face": (source / "config.json").is_file(),
        "checkpoints": bool(list_checkpoints(source)),
        "deepspeed": is_deepspeed(tagged(source)),
        "state_dict": (source / "pytorch_model.bin").is_file() or (source / "model.safetensors").is_file(),
    }
    for kind, fits in signs.items():
        if fits:
            return kind
    raise ConversionError(
        f"{source} has no {MANIFEST}, config.json, *_model_states.pt, model.safetensors or pytorch_model.bin: name a "
        "run, a checkpoint, or a Hugging Face or DeepSpeed folder"
    )


def is_deepspeed(folder: Path) -> bool:
    """Return whether a folder holds a DeepSpeed checkpoint."""
    return any(folder.glob("*_model_states.pt")) or (folder / "zero").is_dir()


def tagged(folder: Path) -> Path:
    """Return the subfolder that a DeepSpeed checkpoint's file ``latest`` names; without such a file, the folder itself.

    Args:
        folder: folder of the DeepSpeed checkpoint.
    """
    for name in ("latest", "latest_universal"):
        if (folder / name).is_file() and (folder / (folder / name).read_text().strip()).is_dir():
            return folder / (folder / name).read_text().strip()
    return folder


def read_foreign(source: Path) -> tuple[Weights, list[str]]:
    """Open a checkpoint of HMT-pytorch or DeepSpeed, and rename its weights as hmt_ds names them.

    Args:
        source: file or folder of the checkpoint.

    Returns:
        The weights, and the stored names of weights that hmt_ds's model does not have.

    Raises:
        ConversionError: the checkpoint contains code, or cannot be read.
    """
    if source.is_file():
        found = tensor_weights(read_state_dict(source))
    elif kind_of(source) == "state_dict":
        found = folder_weights(source)
    elif (tagged(source) / "zero").is_dir():
        found = universal_weights(tagged(source))
    else:
        found = zero_weights(tagged(source))
    return found.renamed(our_name), [name for name in found.shapes if our_name(name) is None]


def our_name(name: str) -> str | None:
    """Translate the name of a weight in HMT-pytorch or hmt_ds to hmt_ds's name; None if hmt_ds has no such weight.

    Args:
        name: the name in the checkpoint.
    """
    name = WRAPPERS.sub("", name)
    for prefix in BACKBONES:
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for theirs, plain in PEFT:
                name = name.replace(theirs, plain, 1)
            return f"backbone.model.{name}"
    name = REFERENCE.get(name, name).removeprefix("hmt.")
    return name if name.startswith(MEMORY_MODULES) else None


def mode_of(weights: Weights) -> Mode:
    """Return the ``memory.mode`` of a model (``hmt``, ``rmt`` or ``backbone``), by the names of its weights."""
    if "recall.query.weight" in weights.shapes:
        return "hmt"
    return "rmt" if "initial_prompt.embeddings.weight" in weights.shapes else "backbone"


def zero_weights(folder: Path) -> Weights:
    """Open a DeepSpeed checkpoint folder of ZeRO stage 0 to 3; sharded weights are joined in float32 when they are
    read."""
    from deepspeed.utils import zero_to_fp32

    with one_line_errors(folder), weights_only(), contextlib.redirect_stdout(io.StringIO()):
        if any(folder.glob("*_optim_states.pt")):
            options = {"tag": folder.name, "lazy_mode": True}
            found = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), **options)
        else:
            found = read_pickle(next(iter(sorted(folder.glob("*_model_states.pt")))))["module"]
    # at stage 3 these are lazy: `contiguous` assembles a weight from the ranks' parts
    shapes = {name: tuple(weight.shape) for name, weight in found.items()}
    return Weights(shapes, lambda name: found[name].contiguous())


def universal_weights(folder: Path) -> Weights:
    """Open a checkpoint folder in DeepSpeed's universal format, which stores each weight in a subfolder.

    Raises:
        ConversionError: if the folder holds no weights.
    """
    files = {path.parent.name: path for path in sorted((folder / "zero").glob("*/fp32.pt"))}
    if not files:
        raise ConversionError(f"{folder / 'zero'} holds no weights (no */fp32.pt): name a folder in universal format")

    def read(name: str) -> Tensor:
        saved = read_pickle(files[name])
        return saved["param"] if isinstance(saved, dict) else saved

    return Weights({name: tuple(read(name).shape) for name in files}, read)
