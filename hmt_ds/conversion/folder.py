"""Write a converted model as a Hugging Face folder, complete or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from hmt_ds.backbones.hashes import write_hashes
from hmt_ds.checkpoint.files import flush_folder, partial_path
from hmt_ds.conversion.conversion_error import ConversionError
from hmt_ds.conversion.export import Export
from hmt_ds.conversion.remote_code import remote_code
from hmt_ds.conversion.shards import write_shards

SETTINGS = "memory_config.json"


def write_folder(export: Export, target: Path, max_shard: str = "5GB") -> None:
    """Write a Hugging Face folder under a hidden name, verify it, and make it visible with one rename.

    Args:
        export: content of the folder.
        target: path of the folder.
        max_shard: largest size of a weight file, such as ``5GB``.

    Raises:
        ConversionError: the folder cannot be written or reads back differently; the hidden folder is removed.
    """
    hidden = partial_path(target)
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        hidden.mkdir(parents=True)
        write_files(export, hidden, max_shard)
        for file in hidden.rglob("*"):
            if file.is_dir():  # a tokenizer with several chat templates has a folder for them
                flush_folder(file)
                continue
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        flush_folder(hidden)
        # all content is on the disk: from this rename on the folder is there, complete
        hidden.rename(target)
        flush_folder(target.parent)
    except (OSError, SafetensorError) as error:
        raise ConversionError(
            f"{target} cannot be written ({error}): name a folder on a disk that has space and that you may write to"
        ) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_files(export: Export, folder: Path, max_shard: str) -> None:
    """Write all files of a Hugging Face folder: weights, configuration, tokenizer, README.md and pictures.

    Args:
        export: content of the folder.
        folder: the folder to write into; must exist.
        max_shard: largest size of a weight file, such as ``5GB``.
    """
    write_shards(folder, export.named_weights(), export.dtype, export.stem, max_shard)
    parts: dict[str, Callable[[Export, Path], None]] = {
        "model": write_model,
        "backbone": write_backbone,
        "memory": write_memory,
        "adapter": write_adapter,
    }
    parts[export.what](export, folder)
    if export.what in ("model", "backbone"):
        if export.tokenizer is not None:
            export.tokenizer.save_pretrained(folder)
        if export.generation is not None:
            export.generation.save_pretrained(folder)
    (folder / "README.md").write_text(export.card, encoding="utf-8")
    for picture in export.pictures:
        shutil.copyfile(picture, folder / picture.name)
    write_hashes(folder)


def write_model(export: Export, folder: Path) -> None:
    """Write config.json of a whole HMT model, and its Python code for ``from_pretrained(..., trust_remote_code=True)``.

    Args:
        export: content of the folder.
        folder: the folder to write into.
    """
    backbone = export.config.to_dict()
    backbone.pop("_name_or_path", None)
    config = {
        "architectures": ["HMTForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_hmt.HMTConfig",
            "AutoModel": "modeling_hmt.HMTModel",
            "AutoModelForCausalLM": "modeling_hmt.HMTForCausalLM",
        },
        "model_type": "hmt",
        "dtype": str(export.dtype).removeprefix("torch."),
        "backbone": backbone,
        "memory": asdict(export.settings),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, source in remote_code().items():
        (folder / name).write_text(source, encoding="utf-8")


def write_backbone(export: Export, folder: Path) -> None:
    """Write config.json of a backbone without memory, as a plain transformers model.

    Args:
        export: content of the folder.
        folder: the folder to write into.
    """
    config = type(export.config).from_dict(export.config.to_dict())
    config.dtype = export.dtype
    config.save_pretrained(folder)


def write_memory(export: Export, folder: Path) -> None:
    """Write memory_config.json, which has the settings of the memory.

    Args:
        export: content of the folder.
        folder: the folder to write into.
    """
    (folder / SETTINGS).write_text(json.dumps(asdict(export.settings), indent=2) + "\n")


def write_adapter(export: Export, folder: Path) -> None:
    """Write adapter_config.json, peft's configuration of LoRA adapters.

    Args:
        export: content of the folder.
        folder: the folder to write into.
    """
    assert export.lora is not None
    export.lora.save_pretrained(folder)
